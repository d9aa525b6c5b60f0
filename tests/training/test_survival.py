"""A run that is stopped, killed or disturbed goes on to the numbers of the unbroken one, or says what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam3 import distributed
from medsam3.data import sampler
from medsam3.evaluation import evaluator
from medsam3.training import resume, trainer
from medsam3.training.meter import StepMeter
from medsam3.training.step import optimizer_step

SETTINGS = (
    "trainer.epochs=2",
    "trainer.log_every_steps=3",
    "trainer.average_decay=0.9",
    "evaluation.images=1",
    "model.regularisation.stochastic_depth=0.2",  # random numbers, which must go on where they stopped
    "model.regularisation.attention_dropout=0.1",
    "model.regularisation.feed_forward_dropout=0.1",
)
STEPS = 4  # of an epoch
TOTALS: list[float] = []  # losses of the steps of `unbroken`


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    monkeypatch.setattr(sampler, "_shares", lambda *_: np.asarray([STEPS]))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Lines and final state of a run that nothing disturbs."""
    from tests.training.conftest import SMALL, TrainConfig, composed

    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_shares", lambda *_: np.asarray([STEPS]))
        add = StepMeter.add
        patch.setattr(StepMeter, "add", lambda self, one, **n: (TOTALS.append(float(one.total)), add(self, one, **n)))
        trainer.train(composed("train", TrainConfig, *SMALL, *data, f"output_dir={folder}", *SETTINGS))
    return lines(folder), state(folder)


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))} for row in rows]


def state(folder: Path) -> dict:
    return torch.load(folder / "last/state.pt", weights_only=True)


def assert_same(one, other) -> None:
    """Bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def at_step(number: int, action) -> object:
    """An optimizer step after which, at this number, something happens."""

    def step(run, *args):
        optimizer_step(run, *args)
        if run.progress.step == number:
            action()

    return step


def before_step(number: int, action) -> object:
    def step(run, *args):
        if run.progress.step + 1 == number:
            action()
        optimizer_step(run, *args)

    return step


def send(number: signal.Signals):
    return lambda: os.kill(os.getpid(), number)


STARTED_AT_FORK: list[int] = []  # a thread for each, as some libraries start their own anew in a forked process
os.register_at_fork(
    after_in_child=lambda: [
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start() for _ in STARTED_AT_FORK
    ]
)


def send_to_all(number: signal.Signals):
    """To the data loading processes, from another process as torchrun does, and then to this one."""
    of_other_tests = multiprocessing.active_children()

    def sent(*_: object) -> None:
        loaders = [process for process in multiprocessing.active_children() if process not in of_other_tests]
        subprocess.run(["kill", f"-{number}", *(str(process.pid) for process in loaders)], check=True)
        time.sleep(0.2)  # in which a loader that is killed is an error here
        assert loaders and all(process.is_alive() for process in loaders)
        os.kill(os.getpid(), number)

    return sent


def ending(*_: object, **__: object) -> None:
    raise KeyError("as a kill would")


def test_a_line_of_the_log_is_of_all_steps_since_the_line_before(unbroken):
    """Every three steps, in epochs of four: the validation after the fourth takes nothing from the second line."""
    logged = {row["step"]: row["loss/total"] for row in unbroken[0] if "loss/total" in row}
    means = {end: sum(TOTALS[begin:end]) / (end - begin) for begin, end in ((0, 3), (3, 6), (6, 8))}
    assert logged == pytest.approx(means) and len(TOTALS) == 2 * STEPS


@pytest.mark.parametrize(
    ("step", "name", "status"),
    [
        (2, "SIGTERM", 75),  # within an interval of the log
        (STEPS, "SIGTERM", 75),  # at the end of an epoch
        (2 * STEPS, "SIGTERM", 75),  # at last
        (2, "SIGUSR1", 75),
        (2, "SIGINT", 130),
    ],
)
def test_a_signal_finishes_the_step_saves_and_the_run_goes_on_to_the_same_numbers(
    step, name, status, configure, unbroken, monkeypatch, tmp_path, capsys
):
    before = signal.getsignal(signal.SIGTERM)
    loaders, sent = (1, send_to_all) if name == "SIGTERM" else (0, send)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "optimizer_step", before_step(step, sent(signal.Signals[name])))
        patch.setattr("tests.training.test_survival.STARTED_AT_FORK", [1])
        with pytest.raises(SystemExit) as ended:
            trainer.train(configure(*SETTINGS, f"data.workers={loaders}"))
    assert ended.value.code == status and signal.getsignal(signal.SIGTERM) == before
    assert f"stopped by {name} after step {step}, which is saved" in capsys.readouterr().out
    assert state(tmp_path / "run")["progress"]["step"] == step
    if name != "SIGTERM":
        return  # the same state
    trainer.train(configure(*SETTINGS))
    assert f"resumes at step {step}" in capsys.readouterr().out
    assert_same([*unbroken], [lines(tmp_path / "run"), state(tmp_path / "run") | {"config": unbroken[1]["config"]}])


@pytest.mark.parametrize("where", ["in the validation", "between best and last", "while best is written"])
def test_a_kill_around_the_validation_leaves_every_line_once(where, configure, unbroken, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        if where == "in the validation":
            patch.setattr(trainer, "mean_score", ending)
        elif where == "while best is written":
            patch.setattr(trainer, "write_best", ending)
        else:
            original = trainer.save
            patch.setattr(trainer, "save", lambda run: ending() if run.progress.validated else original(run))
        with pytest.raises(KeyError, match="as a kill would"):
            trainer.train(configure(*SETTINGS))
    assert state(tmp_path / "run")["progress"] | {"best_dice": -1.0} == dataclasses.asdict(
        resume.Progress(images=STEPS, step=STEPS)
    )
    trainer.train(configure(*SETTINGS))
    assert lines(tmp_path / "run") == unbroken[0]


def test_a_signal_in_the_validation_ends_at_once_because_all_is_saved(
    configure, unbroken, monkeypatch, tmp_path, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "judge", send_to_all(signal.SIGTERM))
        patch.setattr("tests.training.test_survival.STARTED_AT_FORK", [1])
        with pytest.raises(SystemExit) as ended:
            trainer.train(configure(*SETTINGS, "evaluation.workers=1"))
    assert ended.value.code == 75 and state(tmp_path / "run")["progress"]["step"] == STEPS
    assert f"stopped by SIGTERM after step {STEPS}, which is saved" in capsys.readouterr().out
    trainer.train(configure(*SETTINGS))
    assert lines(tmp_path / "run") == unbroken[0]


def test_a_signal_in_the_last_check_ends_at_once_and_the_check_comes_later(configure, monkeypatch, tmp_path):
    settings = ("trainer.max_steps=1", "evaluation.images=1")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "load_sam3", lambda *_: send(signal.SIGTERM)())
        with pytest.raises(SystemExit) as ended:
            trainer.train(configure(*settings))
    assert ended.value.code == 75
    trainer.train(configure(*settings))
    assert "check/best_dice" in lines(tmp_path / "run")[-1]


def test_a_signal_in_the_validation_does_not_hide_a_full_disk(configure, monkeypatch, tmp_path, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(resume.torch, "save", full)
    monkeypatch.setattr(trainer, "mean_score", lambda scores: send(signal.SIGTERM)())
    with pytest.raises(OSError, match=r"state\.pt: cannot be written"):
        trainer.train(configure("trainer.max_steps=1", "evaluation.images=1"))
    assert "which is saved" not in capsys.readouterr().out


def test_a_second_run_of_the_folder_is_refused_with_host_and_process(configure, tmp_path):
    (tmp_path / "run").mkdir()
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from medsam3.files import folder_lock\n"
    code += "with folder_lock(pathlib.Path(sys.argv[2])): print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=rf"is in use by process {other.pid} on \S+: wait for it or end it"):
            trainer.train(configure())
        other.kill()
    trainer.train(configure("trainer.max_steps=1", "evaluation.images=1"))  # the lock does not outlive its process


def test_a_run_folder_that_is_removed_ends_the_run(configure, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "optimizer_step", at_step(2, lambda: shutil.rmtree(tmp_path / "run")))
    with pytest.raises(OSError, match=r"run/metrics\.jsonl was removed or replaced"):
        trainer.train(configure("trainer.max_steps=4"))
    assert not (tmp_path / "run/best").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("[enforce fail] unexpected pos")]
)
def test_a_full_disk_is_said_with_path_and_need_and_the_state_of_before_is_kept(
    error, configure, monkeypatch, tmp_path
):
    original = torch.save

    def save(content, path):
        if content["progress"]["step"] >= 2:
            Path(path).write_bytes(b"half")
            raise error
        original(content, path)

    monkeypatch.setattr(resume.torch, "save", save)
    with pytest.raises(OSError, match=r"last/state\.pt: cannot be written, 0\.0\d+ GB are needed and .* GB free"):
        trainer.train(configure("trainer.save_every_steps=1", "trainer.max_steps=4"))
    assert state(tmp_path / "run")["progress"]["step"] == 1
    assert [path.name for path in (tmp_path / "run/last").iterdir() if "partial" in path.name] == []


def test_a_killed_loader_process_is_one_line_with_the_likely_cause(configure, monkeypatch, tmp_path):
    def killed() -> None:
        raise RuntimeError("DataLoader worker (pid 24867) is killed by signal: Killed. ")

    monkeypatch.setattr(trainer, "optimizer_step", at_step(1, killed))
    with pytest.raises(
        OSError, match=r"process was killed \(.*pid 24867.*out of memory, or of /dev/shm.*data\.workers=0"
    ):
        trainer.train(configure())


def test_a_hanging_rank_ends_the_run_and_is_named(monkeypatch, tmp_path, capsys):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ended: list[int] = []
        monkeypatch.setattr(distributed.os, "_exit", ended.append)
        watch = distributed.Watch(timeout_minutes=0.001)
        watch.doing("loads images for step 7")
        watch.close()  # its thread; what it would do at the time is done here
        watch._interval_s = 0.0
        watch._store.set("medsam3/doing/0", f"{time.time() - 60} {watch._what} (on")
        watch._end()
    finally:
        torch.distributed.destroy_process_group()
    assert ended[-1] == distributed.Watch.STATUS
    assert "rank 0: loads images for step 7 (on: NO SIGN OF LIFE for 60 s" in capsys.readouterr().err
