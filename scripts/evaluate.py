"""Measure a checkpoint: `python scripts/evaluate.py split=external checkpoint=runs/full_finetune`."""

from medsam3.command_line import run_script
from medsam3.config import EvaluateConfig, register_schemas


def evaluate(config: EvaluateConfig) -> None:
    from medsam3.evaluation import measurement, volume_measurement  # take seconds: after the configuration is checked

    if config.volumes:
        volume_measurement.evaluate_volumes(config)
    else:
        measurement.evaluate(config)


if __name__ == "__main__":
    register_schemas()
    run_script("evaluate", EvaluateConfig, evaluate)
