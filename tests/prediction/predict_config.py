"""The settings of a prediction, for tests that need no command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from medsam3.checks import typed
from medsam3.config import PredictConfig, register_schemas
from medsam3.folders import CONFIG_FOLDER

TINY: dict[str, Any] = {"checkpoint": "tiny", "image_size": 56, "device": "cpu"}


def predict_config(tmp_path: Path, **changes: Any) -> PredictConfig:
    """configs/predict.yaml with a tiny model and results below tmp_path/out; `group__key` stands for `group.key`."""
    register_schemas()
    given = TINY | {"output_dir": str(tmp_path / "out"), "input": str(tmp_path / "in"), "prompts": ["polyp"]} | changes
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("predict", [f"{key}={TINY[key]}" for key in TINY] + ["input=x"])
    for key, value in given.items():
        group, _, name = key.rpartition("__")
        setattr(config[group] if group else config, name, value)
    return typed(config, PredictConfig)
