"""Measure a checkpoint: `python scripts/evaluate.py split=external checkpoint=runs/full_finetune`."""

from medsam3.command_line import run_script
from medsam3.config import EvaluateConfig, register_schemas


def evaluate(config: EvaluateConfig) -> None:
    from medsam3.evaluation import measurement  # takes seconds, so only after the configuration is checked

    measurement.evaluate(config)


if __name__ == "__main__":
    register_schemas()
    run_script("evaluate", EvaluateConfig, evaluate)
