"""Weights & Biases: a run in the cloud, or in a folder from where it can be sent later (offline)."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from medsam3.files import write_text

WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode(mode: str) -> WandbMode:
    if mode == "auto":
        mode = "online" if _logged_in_to_wandb() else "offline"
    modes: dict[str, WandbMode] = {"online": "online", "offline": "offline", "off": "disabled"}
    return modes[mode]


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def start_wandb(folder: Path, name: str, project: str, mode: WandbMode, config: dict[str, Any]) -> Any:
    """Begin a W&B run, or go on with the run of this folder; its id lies in wandb_id.txt."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    id_file = folder / "wandb_id.txt"
    run_id = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
    write_text(id_file, run_id + "\n")
    return wandb.init(
        project=project,
        name=name,
        id=run_id,
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=config,
        save_code=False,
    )


def define_panels(run: Any, by_epoch: Iterable[str]) -> None:
    """What is measured at the end of epochs is shown over epochs, the rest over steps; the best Dice is the summary.

    Args:
        by_epoch: what the names of these values begin with.
    """
    run.define_metric("epoch", hidden=True)
    for prefix in by_epoch:
        run.define_metric(f"{prefix}*", step_metric="epoch")
    run.define_metric("validation/dice", step_metric="epoch", summary="max")
