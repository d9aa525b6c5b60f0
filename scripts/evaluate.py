"""Measure a checkpoint: `python scripts/evaluate.py split=external checkpoint=runs/full_finetune`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from medsam3.command_line import run_script
from medsam3.config import EvaluateConfig, register_schemas, typed
from medsam3.evaluator import evaluate

register_schemas()


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    evaluate(typed(config, EvaluateConfig))


if __name__ == "__main__":
    run_script(main)
