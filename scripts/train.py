"""Fine-tune SAM3: `torchrun --standalone --nproc_per_node=4 scripts/train.py experiment=full_finetune`."""

from medsam3.command_line import run_script
from medsam3.config import TrainConfig, register_schemas
from medsam3.training.trainer import train

if __name__ == "__main__":
    register_schemas()
    run_script("train", TrainConfig, train)
