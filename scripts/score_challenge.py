"""Scores of the CVPR 2025 text-guided 3D challenge, and honest ones beside them: docs/challenge.md."""

from medsam3.command_line import run_script
from medsam3.config import ChallengeConfig, register_schemas
from medsam3.metrics.challenge import score

if __name__ == "__main__":
    register_schemas()
    run_script("challenge", ChallengeConfig, score)
