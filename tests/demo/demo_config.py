"""The settings of the page, for tests that need no command line."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir

from medsam3.checks import typed
from medsam3.config import DemoConfig, register_schemas
from medsam3.folders import CONFIG_FOLDER


def demo_config(**changes: Any) -> DemoConfig:
    """configs/demo.yaml with a tiny random model, at a threshold where it finds something."""
    register_schemas()
    tiny = ["checkpoint=tiny", "image_size=56", "device=cpu", "prediction.union_threshold=0.05"]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("demo", tiny)
    for key, value in changes.items():
        setattr(config, key, value)
    return typed(config, DemoConfig)
