"""Training in this process: the tiny model on the MNI152 template."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir

from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import TrainConfig, register_schemas
from tests.scripts import SMALL

Configure = Callable[..., TrainConfig]


def composed(name: str, schema: type, *overrides: str):
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return typed(compose(name, list(overrides)), schema)


@pytest.fixture
def configure(data, tmp_path) -> Configure:
    """A training configuration of the tiny model; the run lies in tmp_path/run unless `output_dir` says otherwise."""
    here = [f"output_dir={tmp_path}/run"]
    return lambda *overrides: composed("train", TrainConfig, *SMALL, *data, *here, *overrides)
