"""What a run needs to go on after an interruption: `last/state.pt`. (The model for its users, `best/`, is a folder that
checkpoints.weights writes.)"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Sam3Model

from medsam3 import distributed
from medsam3.checks import differing_keys
from medsam3.config import TrainConfig
from medsam3.data.corpus import Corpus
from medsam3.files import file_hash, needs_room, new_file, write_text
from medsam3.registry.scenes import SCENE_FILE
from medsam3.registry.vocabulary import VOCABULARY_FILE
from medsam3.training.meter import StepMeter

STATE_FILE = "state.pt"
# Keys that do not change a run's numbers, and so may differ when it is resumed.
FREE_KEYS = (
    "processes",  # see `run.set_up`
    "device",
    "output_root",
    "output_dir",
    "data.root",
    "data.splits",  # their content counts: see `data_hashes`
    "data.cache",
    "data.workers",
    "evaluation.workers",
    "evaluation.metrics",
    "evaluation.overlays",
    "evaluation.instances",
    "evaluation.instance_score",
    "trainer.max_skipped_steps",
    "trainer.patience",
    "trainer.log_every_steps",
    "trainer.save_every_steps",
    "trainer.keep_states",
    "trainer.timeout_minutes",
    "wandb",
)
GROWING_KEYS = ("epochs", "max_steps")  # of trainer: a finished run may go on


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # the epoch to go on with
    images: int = 0  # of that epoch, done by all ranks together
    step: int = 0  # optimizer steps done
    best_dice: float = -1.0  # of the validations so far; -1 before the first
    skipped: int = 0  # steps in a row, up to now, that could not be taken
    validated: bool = False  # after this very step
    without_gain: int = 0  # validations in a row, up to now, that found no better Dice


class StateWriter:
    """Writes `last/state.pt` in a thread: the run waits for the copy of its tensors only. Rank 0 writes."""

    def __init__(self, folder: Path, keep: int, step: int) -> None:
        """
        Args:
            folder: `last` of the run.
            keep: states to keep: state.pt and, by their steps, the ones before it.
            step: of the state that is there, if any.
        """
        self.folder = folder
        self._keep = keep
        self._step = step
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error = ""

    def save(
        self,
        model: Sam3Model,
        average: nn.Module | None,
        optimizer: Optimizer,
        meter: StepMeter,
        progress: Progress,
        config: Mapping[str, Any],
    ) -> None:
        """Begin to write the state; all ranks must call it: each has its random state.

        Raises:
            ValueError: a weight is not finite; the state of before is kept.
            OSError: the state before this one could not be written.
        """
        self.wait()
        if not finite_weights(model):
            raise ValueError(
                f"after step {progress.step} the weights are not finite, so {self.folder} is left as it was: training "
                "diverged; lower the learning rates (optim.lr)"
            )
        of_ranks = distributed.gather_objects((_random_state(), meter.state()))
        if not distributed.is_main():
            return
        state = {
            "model": model.state_dict(),
            "average": average.state_dict() if average is not None else {},
            "optimizer": optimizer.state_dict(),
            "progress": dict(vars(progress)),
            "random_states": [random_state for random_state, _ in of_ranks],
            "meters": [state for _, state in of_ranks],
            "config": dict(config),
        }
        copied = self._copy(state, "")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = threading.Thread(target=self._write, args=(copied, model.config.to_json_string()))
        self._thread.start()

    def wait(self) -> None:
        """Until the state is written. All ranks must call it.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error = distributed.gather_objects(self._error)[0]
        self._error = ""
        if error:
            raise OSError(error)

    def close(self) -> str:
        """Let the thread finish, after an end elsewhere; what kept it from writing, if anything did."""
        if self._thread is not None:
            self._thread.join()
        return self._error

    def _copy(self, value: Any, name: str) -> Any:
        """The same with tensors in memory of their own, which is used again for the next state."""
        if isinstance(value, Tensor):
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._buffers[name] = buffer
            return buffer.copy_(value, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self._copy(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, list):
            return [self._copy(inner, f"{name}.{i}") for i, inner in enumerate(value)]
        return value

    def _write(self, state: dict[str, Any], model_config: str) -> None:
        path = self.folder / STATE_FILE
        need = sum(buffer.nbytes for buffer in self._buffers.values())
        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: a run folder that is gone is an error
            with needs_room(path, need):
                write_text(self.folder / "config.json", model_config, durable=True)
                with new_file(path, durable=True) as temporary:
                    torch.save(state, temporary)
                    self._put_aside(path)
        except Exception as error:  # `wait` raises it: no run goes on that does not save
            self._error = str(error) if isinstance(error, OSError) else f"{path}: cannot be written ({error!r})"
        else:
            self._step = state["progress"]["step"]

    def _put_aside(self, path: Path) -> None:
        """Give the state of before a second name, by its step; remove the oldest ones beyond `keep`, and those of later
        steps, from which somebody went back."""
        if self._keep > 1 and path.exists():
            older = path.with_name(f"state_{self._step:08d}.pt")
            older.unlink(missing_ok=True)
            try:
                os.link(path, older)
            except OSError:  # a file system without links
                shutil.copy2(path, older)
        there = sorted(path.parent.glob("state_*.pt"), reverse=True)
        before = [old for old in there if old.name <= f"state_{self._step:08d}.pt"]
        for old in {*there}.difference(before[: self._keep - 1]):
            old.unlink()


def finite_weights(model: nn.Module) -> bool:
    """Whether every weight of the model is a finite number. Waits for the device once."""
    return bool(torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()]).all().item())


def data_hashes(corpus: Corpus, config: TrainConfig) -> dict[str, dict[str, str]]:
    """What the data sets of a run are, for its stored configuration: who resumes with other ones is told so. With them
    vocabulary and scenes, where words are drawn from them."""
    data, asked = config.data, config.evaluation
    words = data.absent_concepts or data.synonyms or data.prompts != "canonical"
    words = words or asked.ask == "all" or asked.foreign.hard or asked.foreign.easy
    return {
        "split_files": {name: corpus.split_hash(name)[:16] for name in corpus.specs},
        "dataset_files": {name: spec.content_hash[:16] for name, spec in corpus.specs.items()},
        "word_files": {file.name: file_hash(file)[:16] for file in (SCENE_FILE, VOCABULARY_FILE) if words},
    }


def read_last(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The state that `StateWriter` wrote, or None if there is none.

    Raises:
        ValueError: the state is damaged or belongs to another configuration; lists the keys that differ.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        Progress(**state["progress"])
        stored = state["config"]
    except Exception as error:  # torch names no common class for a damaged file
        older = sorted(file.name for file in folder.glob("state_*.pt"))[-1:]
        also = f", or put {older[0]} in its place" if older else ""
        raise ValueError(f"{path}: not a run's state ({error}); remove it to start again{also}") from error
    differing = [
        line
        for line in differing_keys(stored | {"trainer": _grown(stored.get("trainer", {}), config["trainer"])}, config)
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in FREE_KEYS)
    ]
    if differing:
        raise ValueError(
            f"{path} was written with another configuration; give the run another name=, remove the folder, "
            "or use the stored values (stored -> now):\n  " + "\n  ".join(differing)
        )
    return state


def _grown(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings with a longer run's length; null means no end."""
    longer = {
        key: now[key]
        for key in GROWING_KEYS
        if now[key] is None or (stored.get(key) is not None and now[key] > stored[key])
    }
    return {**stored, **longer}


def restore(
    state: dict[str, Any], model: nn.Module, average: nn.Module | None, optimizer: Optimizer, seed: int
) -> Progress:
    """Put model, averaged weights, optimizer and this rank's random state back where `state` left them.

    With another number of processes the random states have no owner any more; they are drawn anew from seed and step.
    """
    model.load_state_dict(state["model"], strict=True)
    if average is not None:
        average.load_state_dict(state["average"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    if len(state["random_states"]) == distributed.world_size():
        _set_random_state(state["random_states"][distributed.rank()])
    else:
        torch.manual_seed(seed + 1000 * progress.step + distributed.rank())
    return progress


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
