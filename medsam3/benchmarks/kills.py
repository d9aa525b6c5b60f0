"""Runs that are killed and started again, compared with one that nobody disturbs.

A run is a process forked from this one, which has imported the libraries once. It kills itself where it is told to: at
a file operation, by Python's audit events, or within a file, after so many bytes: the kernel ends a process that writes
beyond RLIMIT_FSIZE.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medsam3.benchmarks.parts import small_corpus, training_config
from medsam3.config import TrainConfig
from medsam3.registry.spec import load_specs
from medsam3.training import trainer
from medsam3.training.log import RunLog

SIGNALS = ("SIGKILL", "SIGTERM")
WRITES = {  # what a run writes: pattern of the paths, temporary names included
    "state": re.compile(r"/run/last"),
    "best": re.compile(r"/run/\.?best"),
    "metrics": re.compile(r"/run/\.?metrics"),
    "facts": re.compile(r"/run/\.?(config|environment)"),
    "validation": re.compile(r"/run/validation"),
}
OPERATIONS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}
IMAGES, VALIDATION = 10, 2  # of them: an epoch has eight steps
SETTINGS = (
    *("model=tiny", "model.image_size=56", "datasets=mni152", "device=cpu", "wandb.mode=off", "trainer.epochs=2"),
    *("data.workers=0", "evaluation.workers=0", "evaluation.overlays=0"),
    *("trainer.log_every_steps=3", "trainer.save_every_steps=2", "trainer.keep_states=2"),
    # all that is drawn, and so must go on where it stopped
    *("augmentation=by_modality", "data.absent_concepts=1", "data.synonyms=0.5", "trainer.average_decay=0.9"),
    *("model.regularisation.stochastic_depth=0.2", "model.regularisation.attention_dropout=0.1"),
)
Arm = Callable[[], None]


@dataclass
class Kills:
    """Of one kind."""

    runs: int = 0
    kills: int = 0
    ends: Counter[str] = field(default_factory=Counter)  # how the processes that were to be killed ended
    steps: list[int] = field(default_factory=list)  # in metrics.jsonl at each kill
    different: list[str] = field(default_factory=list)  # from the unbroken run


class Series:
    """A run that nobody disturbs, and others to compare with it."""

    def __init__(self, folder: Path, overrides: Sequence[str], seed: int, say: Callable[[str], None]) -> None:
        torch.set_num_threads(1)  # a fork takes no threads along
        small_corpus(load_specs("mni152")["mni152"], folder, folder, IMAGES, None, VALIDATION)
        own = [f"data.root={folder}", f"data.splits={folder}", f"data.cache={folder}/cache", f"output_dir={folder}/run"]
        self.config = training_config(*SETTINGS, *own, *overrides)
        self.folder, self.run, self.unbroken = folder, folder / "run", folder / "unbroken"
        self.random, self.say = random.Random(seed), say
        begin = time.monotonic()
        self._finish(arm=_Watch(folder / "operations.json"))
        self.seconds = time.monotonic() - begin
        self.operations: dict[str, int] = json.loads((folder / "operations.json").read_text())
        self.run.rename(self.unbroken)
        say(f"unbroken: {self.seconds:.1f} s, operations {self.operations}")

    def kill(self, kind: str, times: int) -> Kills:
        """Kill runs so many times, each at most twice, and compare what they come to.

        Args:
            kind: of SIGNALS, sent at random moments, or of WRITES, killed within.
        """
        result = Kills()
        while result.kills < times:
            shutil.rmtree(self.run, ignore_errors=True)
            result.runs += 1
            for _ in range(2):
                end = self._killed(kind)
                result.ends[end] += 1
                if end == "exit 0":  # the moment never came
                    break
                result.kills += 1
                result.steps.append(last_step(self.run))
            self._finish()
            where = f"{kind}, run {result.runs}, killed at {result.steps[-2:]}"
            result.different += [f"{where}: {text}" for text in differences(self.unbroken, self.run)]
            self.say(f"{kind}: {result.kills} of {times}, {len(result.different)} differences {result.different[-1:]}")
        return result

    def _killed(self, kind: str) -> str:
        if kind in SIGNALS:
            return self._process(signal.Signals[kind], self.random.uniform(0, self.seconds))
        torn_bytes = round(2 ** self.random.uniform(0, 26)) if self.random.random() < 0.5 else None
        place = self.random.randint(1, self.operations[kind])
        return self._process(arm=_Watch(None, kind, place, torn_bytes))

    def _finish(self, arm: Arm | None = None) -> None:
        end = self._process(arm=arm)
        if end != "exit 0":
            raise ValueError(f"a run that was started again ended with {end}:\n{(self.folder / 'log').read_text()}")

    def _process(self, number: int = 0, after_s: float | None = None, arm: Arm | None = None) -> str:
        """Run until it ends, or gets a signal after so long; how it ended."""
        process: Any = multiprocessing.get_context("fork").Process(
            target=_train, args=(self.config, self.folder / "log", arm)
        )
        process.start()
        process.join(after_s)
        if process.is_alive():
            os.kill(process.pid, number)
            process.join()
        code = process.exitcode
        return f"exit {code}" if code >= 0 else signal.Signals(-code).name


def _train(config: TrainConfig, log: Path, arm: Arm | None) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if arm is not None:
        arm()
    trainer.train(config)


@dataclass
class _Watch:
    """Counts the file operations of a run by what is written, each line of metrics.jsonl too; and kills at one."""

    report: Path | None  # gets the counts with every line of metrics.jsonl
    kind: str = ""
    place: int = 0  # the number of the operation, from 1
    torn_bytes: int | None = None  # die within the next file that is longer; None: before the operation
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        sys.addaudithook(self._audit)
        original = RunLog.record

        def record(log: RunLog, *arguments: Any) -> None:
            self._count("metrics", log._path.stat().st_size)
            if self.report is not None:
                self.report.write_text(json.dumps(self.counts))
            original(log, *arguments)

        RunLog.record = record  # type: ignore[method-assign,assignment]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS:
            paths = " ".join(str(argument) for argument in arguments[:2])
            for kind, pattern in WRITES.items():
                if pattern.search(paths):
                    self._count(kind)

    def _count(self, kind: str, there_bytes: int | None = None) -> None:
        self.counts[kind] += 1
        if kind != self.kind or self.counts[kind] != self.place:
            return
        if self.torn_bytes is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:  # a line has less than 1000 bytes
            beyond = self.torn_bytes if there_bytes is None else there_bytes + self.torn_bytes % 1000
            resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, resource.RLIM_INFINITY))


def last_step(run: Path) -> int:
    """In metrics.jsonl, also where its last line is torn; 0 if there is none."""
    path = run / "metrics.jsonl"
    steps = re.findall(r'^\{"step": (\d+)', path.read_text(), re.MULTILINE) if path.exists() else []
    return int(steps[-1]) if steps else 0


def differences(one: Path, other: Path) -> Iterator[str]:
    """In what a run differs from another: lines of metrics.jsonl but for speed and memory, the state, the files."""
    lines = [list(_lines(run / "metrics.jsonl")) for run in (one, other)]
    for number, (left, right) in enumerate(zip(*lines, strict=False), start=1):
        if left != right:
            keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
            yield f"metrics.jsonl, line {number}: {keys[0]} is {right.get(keys[0])}, not {left.get(keys[0])}"
            break
    else:
        if len(lines[0]) != len(lines[1]):
            yield f"metrics.jsonl has {len(lines[1])} lines, not {len(lines[0])}"
    states = [torch.load(run / "last/state.pt", weights_only=True) for run in (one, other)]
    for part in states[0]:
        if part != "config" and not _same(states[0][part], states[1][part]):
            yield f"last/state.pt: {part}"
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (one, other)]
    for name in sorted(files[0] ^ files[1]):
        yield f"{name}: {'is left over' if name in files[1] else 'is missing'}"
    weights = [(run / "best/model.safetensors").read_bytes() for run in (one, other)]
    if weights[0] != weights[1]:
        yield "best/model.safetensors"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield {k: v for k, v in json.loads(line).items() if not k.startswith(("speed/", "memory/"))}


def _same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
