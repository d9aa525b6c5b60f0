"""How much of a score is the box: `python scripts/diagnose.py checkpoint=facebook/sam3 split=external name=study`."""

from medsam3.command_line import run_script
from medsam3.config import EvaluateConfig, register_schemas
from medsam3.evaluation.diagnosis import diagnose

if __name__ == "__main__":
    register_schemas()
    run_script("evaluate", EvaluateConfig, diagnose)
