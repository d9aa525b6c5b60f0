"""Fine-tune SAM3: `torchrun --standalone --nproc_per_node=4 scripts/train.py experiment=full_finetune`."""

from medsam3.command_line import run_script
from medsam3.config import TrainConfig, register_schemas


def train(config: TrainConfig) -> None:
    from medsam3.training import trainer  # takes seconds, so only after the configuration is checked

    trainer.train(config)


if __name__ == "__main__":
    register_schemas()
    run_script("train", TrainConfig, train)
