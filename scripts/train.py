"""Fine-tune SAM3: `torchrun --standalone --nproc_per_node=4 scripts/train.py experiment=full_finetune`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from medsam3.command_line import run_script
from medsam3.config import TrainConfig, register_schemas, typed
from medsam3.trainer import train

register_schemas()


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    train(typed(config, TrainConfig))


if __name__ == "__main__":
    run_script(main)
