"""What a run needs to go on after an interruption: `last/state.pt`. (The model for its users, `best/`, is a folder that
checkpoints.weights writes.)"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import Sam3Model

from medsam3 import distributed
from medsam3.config import differing_keys
from medsam3.files import new_file, write_text

STATE_FILE = "state.pt"
# Keys that do not change a run's numbers, and so may differ when it is resumed.
FREE_KEYS = (
    "device",
    "output_root",
    "output_dir",
    "data.root",
    "data.cache",
    "data.workers",
    "evaluation.workers",
    "evaluation.metrics",
    "evaluation.overlays",
    "trainer.max_skipped_steps",
    "trainer.log_every_steps",
    "trainer.save_every_steps",
    "wandb",
)


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int  # the epoch to go on with
    batch: int  # batches of that epoch that each rank has done
    step: int  # optimizer steps done
    best_dice: float  # of the validations so far; -1 before the first
    skipped: int = 0  # steps in a row, up to now, that could not be taken


def save_last(folder: Path, model: Sam3Model, optimizer: Optimizer, progress: Progress, config: dict[str, Any]) -> None:
    """Write `<folder>/state.pt` and the model's config.json. All ranks must call it: each has its random state.

    Raises:
        ValueError: a weight is not finite; the state of before is kept.
    """
    if not finite_weights(model):
        raise ValueError(
            f"after step {progress.step} the weights are not finite, so {folder} is left as it was: training diverged; "
            "lower the learning rates (optim.lr)"
        )
    random_states = distributed.gather_objects(_random_state())
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", model.config.to_json_string())
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": dict(vars(progress)),
            "random_states": random_states,
            "config": config,
        }
        with new_file(folder / STATE_FILE) as temporary:
            torch.save(state, temporary)
    distributed.barrier()


def finite_weights(model: nn.Module) -> bool:
    """Whether every weight of the model is a finite number. Waits for the device once."""
    return bool(torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()]).all().item())


def read_last(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The state that `save_last` wrote, or None if there is none.

    Raises:
        ValueError: the state belongs to another configuration or number of processes; lists the keys that differ.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch names no common class for a damaged file
        raise ValueError(f"{path}: cannot be read ({error}); remove it to start again") from error
    differing = [
        line
        for line in differing_keys(state["config"], config)
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in FREE_KEYS)
    ]
    if differing:
        raise ValueError(
            f"{path} was written with another configuration; give the run another name=, remove the folder, "
            "or use the stored values (stored -> now):\n  " + "\n  ".join(differing)
        )
    return state


def restore(state: dict[str, Any], model: Sam3Model, optimizer: Optimizer) -> Progress:
    """Put model, optimizer and this rank's random state back where `state` left them."""
    model.load_state_dict(state["model"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    _set_random_state(state["random_states"][distributed.rank()])
    return Progress(**state["progress"])


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
