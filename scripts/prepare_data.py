"""Check data sets and freeze their splits: `python scripts/prepare_data.py data.root=/my/data dataset=drive`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from medsam3.command_line import run_script
from medsam3.config import typed
from medsam3.prepare import PrepareConfig, prepare, register_prepare_schema

register_prepare_schema()


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_data")
def main(config: DictConfig) -> None:
    prepare(typed(config, PrepareConfig))


if __name__ == "__main__":
    # To Hydra, `dataset=` means a file of the group configs/dataset; here it means the key `datasets`.
    sys.argv[1:] = [f"datasets={a.removeprefix('dataset=')}" if a.startswith("dataset=") else a for a in sys.argv[1:]]
    run_script(main)
