"""What a run says and keeps: lines on the console, metrics.jsonl, events.jsonl, pictures, and Weights & Biases.

Only rank 0 writes. Keys of metrics.jsonl are grouped by what stands before their first slash. An interrupted run has
the lines of an unbroken one; that it was interrupted stands in events.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import WandbConfig
from medsam3.dashboard import define_panels, start_wandb, wandb_mode
from medsam3.files import needs_room, new_file, write_text
from medsam3.versions import code_version, package_versions

EVENTS, CASES = "events.jsonl", "cases"
AT_THE_END = ("validation", "asked/", "check/")  # names of what is written at the end of an epoch or run


class RunLog:
    """Scalars and pictures of one run. A resumed run appends after `step`, where its checkpoint stands."""

    def __init__(
        self, folder: Path, name: str, wandb: WandbConfig, config: dict[str, Any], step: int, validated: bool = False
    ) -> None:
        """
        Args:
            step: of the state that the run goes on from; what lies behind it is written again.
            validated: the lines of an epoch's end after that step lie before the state, else behind it.
        """
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._wandb_run: Any = None
        self._last: dict[str, Any] = {}  # line of metrics.jsonl
        if not distributed.is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._last = _keep_lines_up_to(self._path, step, validated)
        for picture in folder.glob(f"{CASES}*/*/*"):
            if not picture.stem.isdigit() or int(picture.stem) > step:  # what a kill left behind; what is made anew
                picture.unlink()
        self._file = self._path.open("a", encoding="utf-8")
        mode = wandb_mode(wandb.mode)
        if mode != "disabled":
            self._wandb_run = start_wandb(folder, name, wandb.project, mode, config)
            define_panels(self._wandb_run, (*AT_THE_END[:2], CASES))

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
        """One line of metrics.jsonl.

        Raises:
            OSError: it cannot be written.
        """
        if not distributed.is_main():
            return
        self.ensure_there()
        self._last = {"step": step, **values}
        try:
            self._file.write(json.dumps(self._last) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._path}: cannot be written ({error.strerror})") from error

    def event(self, what: str, step: int, facts: Mapping[str, Any]) -> None:
        """A line of events.jsonl: that the run started, resumed, stopped or ended. A full disk leaves it out."""
        if distributed.is_main():
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": what, "step": step, **facts}
            path = self._folder / EVENTS
            with contextlib.suppress(OSError):
                before = path.read_text(encoding="utf-8") if path.exists() else ""
                write_text(path, f"{before}{json.dumps(line)}\n")  # whole, also where a kill or a full disk meets it

    @contextmanager
    def failures(self, progress: Any) -> Iterator[None]:
        """Within the context an error becomes an event.

        Args:
            progress: has the `step`.
        """
        try:
            yield
        except Exception as error:
            self.event("failed", progress.step, {"error": (str(error) or type(error).__name__).splitlines()[0]})
            raise

    def ends_with(self, name: str) -> bool:
        """Whether the last line has this value. All ranks must call it."""
        return distributed.from_main(lambda: name in self._last)

    def sync(self) -> None:
        """All lines so far are on the disk."""
        self.ensure_there()
        if distributed.is_main():
            os.fsync(self._file.fileno())

    def ensure_there(self) -> None:
        """
        Raises:
            OSError: metrics.jsonl is not the file that this run writes any more; what it held is lost.
        """
        if not distributed.is_main():
            return
        if not self._path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise OSError(
                f"{self._path} was removed or replaced while the run wrote to it: its records are lost, so the run "
                "ends here. Run the same command again: it goes on from `last`, if that is still there"
            )

    def pictures(self, step: int, group: str, pictures: Mapping[str, Image.Image]) -> None:
        """Pictures of the fixed cases, by file name: <group>/<case>/<step>.jpg, and to W&B as <group>/<case>.

        Raises:
            OSError: one cannot be written.
        """
        if not distributed.is_main() or not pictures:
            return
        for name, picture in pictures.items():
            path = self._folder / group / Path(name).stem / f"{step:08d}.jpg"
            with needs_room(path, 100_000), new_file(path) as temporary:
                picture.save(temporary, "JPEG", quality=85)
        if self._wandb_run is None:
            return
        import wandb

        shown = {f"{group}/{Path(name).stem}": wandb.Image(picture) for name, picture in pictures.items()}
        self._wandb_run.log(shown, step=step)

    def close(self) -> None:
        if distributed.is_main():
            with contextlib.suppress(OSError):  # a full disk, which has been said
                self._file.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


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


def _keep_lines_up_to(path: Path, step: int, validated: bool) -> dict[str, Any]:
    """Drop what an interrupted run wrote after its last state: the resumed run writes it again.

    Returns:
        The last line that is left.
    """
    kept, last = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):  # torn by a kill
            continue
        try:
            values = json.loads(line)
            later = values["step"] > step
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is not of a run ({error!r}); mend or remove it") from error
        unsaved = values["step"] == step and not validated and any(key.startswith(AT_THE_END) for key in values)
        if not later and not unsaved:
            kept.append(line)
            last = values
    write_text(path, "".join(kept), durable=True)
    return last
