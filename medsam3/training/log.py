"""What a run says and keeps: lines on the console, metrics.jsonl, and Weights & Biases. Only rank 0 writes."""

from __future__ import annotations

import json
import netrc
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import WandbConfig
from medsam3.files import write_text
from medsam3.versions import code_version, package_versions

WandbMode = Literal["online", "offline", "disabled"]


class RunLog:
    """Scalars and pictures of one run. A resumed run appends after `step`, where its checkpoint stands."""

    def __init__(self, folder: Path, name: str, wandb: WandbConfig, config: dict[str, Any], step: int) -> None:
        self._wandb_run: Any = None
        if not distributed.is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            _keep_lines_up_to(path, step)
        self._file = path.open("a", encoding="utf-8")
        mode = _wandb_mode(wandb.mode)
        if mode != "disabled":
            self._wandb_run = _start_wandb(folder, name, wandb.project, mode, config)

    def line(self, text: str) -> None:
        """A line for the reader at the console; does not disturb a progress bar."""
        if distributed.is_main():
            tqdm.write(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same to W&B."""
        self.record(step, values)
        if self._wandb_run is not None:
            self._wandb_run.log(dict(values), step=step)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if distributed.is_main():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Overlay pictures, by name, to W&B; the evaluator has written the files already."""
        if self._wandb_run is None or not pictures:
            return
        import wandb

        self._wandb_run.log({f"overlay/{k}": wandb.Image(v) for k, v in pictures.items()}, step=step)

    def close(self) -> None:
        if distributed.is_main():
            self._file.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()


def write_run_facts(folder: Path, config_yaml: str) -> None:
    """config.yaml and environment.json: what is needed to repeat the run (no environment variables are recorded)."""
    write_text(folder / "config.yaml", config_yaml)
    facts = {
        "versions": package_versions(),
        "python": platform.python_version(),
        "code": code_version(),
        "processes": distributed.world_size(),
    }
    write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")


def _keep_lines_up_to(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote after its last checkpoint: the resumed run writes it again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text(path, "".join(kept))


def _wandb_mode(mode: str) -> WandbMode:
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


def _start_wandb(folder: Path, name: str, project: str, mode: WandbMode, config: dict[str, Any]) -> Any:
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
