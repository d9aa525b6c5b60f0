"""A run that is stopped, killed or disturbed goes on to the numbers of the unbroken one, or says what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import resource
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
from medsam3.training.log import RunLog
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


def test_a_finished_run_goes_on_where_it_gets_more_epochs_but_not_fewer(configure, monkeypatch, tmp_path, capsys):
    trainer.train(configure("trainer.epochs=1", "evaluation.images=1"))
    finished = lines(tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    *kept, check = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(kept))  # killed before the last line, which all else is before
    left = [tmp_path / "run" / name for name in (".config.yaml.1.partial", "last/.config.json.1.partial")]
    for path in left:
        path.touch()
    trainer.train(configure("trainer.epochs=1", "evaluation.images=1"))
    assert lines(tmp_path / "run") == finished and "check/best_dice" in check
    assert not any(path.exists() for path in left)
    trainer.train(configure("trainer.epochs=2", "evaluation.images=1"))
    said = capsys.readouterr().out
    assert f"is finished at step {STEPS} (" in said and f"resumes at step {STEPS}, {2 * STEPS} steps" in said
    assert (
        said.count(f"was planned for {STEPS} steps before: its rates went by those and from here on go by {2 * STEPS}")
        == 1
    )
    assert lines(tmp_path / "run")[: len(finished)] == finished and lines(tmp_path / "run")[-1]["step"] == 2 * STEPS
    with pytest.raises(ValueError, match=r"trainer\.epochs: 2 -> 1"):
        trainer.train(configure("trainer.epochs=1", "evaluation.images=1"))


def test_more_steps_go_on_within_the_epoch_that_was_cut_short(configure, tmp_path):
    trainer.train(configure("trainer.max_steps=1", "evaluation.images=1"))
    assert state(tmp_path / "run")["progress"]["images"] == 1
    trainer.train(configure("trainer.max_steps=3", "evaluation.images=1"))
    assert state(tmp_path / "run")["progress"]["images"] == 3


def test_another_number_of_processes_goes_on_at_the_same_image(configure, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "optimizer_step", at_step(3, ending))
        with pytest.raises(KeyError):
            trainer.train(configure("trainer.save_every_steps=2", "trainer.epochs=1", "evaluation.images=1"))
    stored = state(tmp_path / "run")  # as two processes, one image each, would have left it after one step
    stored["progress"] |= {"step": 1}
    stored["config"]["processes"] = 2
    stored["random_states"] *= 2
    stored["meters"] = [stored["meters"][0] | {"asked": {"present": 3}}] * 2  # an image of three concepts each
    torch.save(stored, tmp_path / "run/last/state.pt")
    trainer.train(configure("trainer.epochs=1", "evaluation.images=1"))
    said = capsys.readouterr().out
    assert "had 2 process(es) before: the epoch goes on at its image 2 of 4" in said
    assert "resumes at step 1, 3 steps" in said  # the two images that are left, one a step
    assert "asked: 12 present" in said  # of the whole epoch
    assert state(tmp_path / "run")["progress"]["step"] == 3


def test_other_words_are_refused_where_words_are_drawn(configure, monkeypatch, tmp_path):
    scenes = tmp_path / "scenes.yaml"
    scenes.write_bytes(resume.SCENE_FILE.read_bytes())
    monkeypatch.setattr(resume, "SCENE_FILE", scenes)
    for name, setting in (("plain", "data.synonyms=0"), ("with", "data.absent_concepts=1")):
        settings = (setting, f"output_dir={tmp_path}/{name}", "trainer.max_steps=1", "evaluation.images=1")
        trainer.train(configure(*settings))
        scenes.write_bytes(scenes.read_bytes() + b"# another word\n")
        if name == "plain":
            trainer.train(configure(*settings))
        else:
            with pytest.raises(ValueError, match=r"word_files\.scenes\.yaml: \w{16} -> \w{16}$"):
                trainer.train(configure(*settings))


@pytest.mark.parametrize("changed", ["split file", "data set"])
def test_other_data_are_refused_by_name(changed, configure, data, monkeypatch, tmp_path):
    splits = tmp_path / "splits"
    shutil.copytree(data[0].removeprefix("data.splits="), splits)
    settings = (f"data.splits={splits}", "trainer.max_steps=1", "evaluation.images=1")
    trainer.train(configure(*settings))
    if changed == "split file":
        text = (splits / "mni152.csv").read_text()
        (splits / "mni152.csv").write_text(text.replace('"val"', '"train"', 6))
    else:
        original = trainer.open_corpus

        def opened(*args):
            corpus = original(*args)
            corpus.specs["mni152"] = dataclasses.replace(corpus.specs["mni152"], min_area_px=9)
            return corpus

        monkeypatch.setattr(trainer, "open_corpus", opened)
    with pytest.raises(ValueError, match=f"{changed.replace(' ', '_').replace('data_set', 'dataset_file')}.*mni152: "):
        trainer.train(configure(*settings))


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


def test_the_newest_states_are_kept(configure, tmp_path):
    trainer.train(configure("trainer.max_steps=3", "trainer.save_every_steps=1", "trainer.keep_states=3"))
    names = sorted(path.name for path in (tmp_path / "run/last").glob("*.pt"))
    assert names == ["state.pt", "state_00000002.pt", "state_00000003.pt"]  # step 3 before its validation
    older = torch.load(tmp_path / "run/last/state_00000002.pt", weights_only=True)
    assert older["progress"]["step"] == 2
    writer = resume.StateWriter(tmp_path / "run/last", keep=2, step=2)  # somebody went back to step 2
    writer._put_aside(tmp_path / "run/last/state.pt")
    assert [path.name for path in (tmp_path / "run/last").glob("state_*.pt")] == ["state_00000002.pt"]


def test_a_state_that_cannot_be_written_for_any_reason_ends_the_run(tmp_path):
    writer = resume.StateWriter(tmp_path / "last", keep=1, step=0)
    writer._write({"progress": {"step": 1}, "model": lambda: None}, "{}")
    with pytest.raises(OSError, match=r"last/state\.pt: cannot be written \(.*lambda"):
        writer.wait()


@pytest.mark.parametrize("validated", [False, True])
def test_lines_of_the_end_count_only_with_the_state_that_has_them(validated, configure, tmp_path):
    end = [{"step": 8, name: 1.0} for name in ("loss/total", "asked/present", "validation/dice", "check/best_dice")]
    rows = [{"step": 7, "check/best_dice": 0.5}, *end, {"step": 9, "loss/total": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    log = RunLog(tmp_path, "run", configure().wandb, {}, step=8, validated=validated)
    log.close()
    assert lines(tmp_path) == (rows[:5] if validated else rows[:2])
    assert log.ends_with("check/best_dice") == validated


def test_an_event_for_which_there_is_no_room_leaves_those_before_it_whole(configure, tmp_path):
    log = RunLog(tmp_path, "run", configure().wandb, {}, step=0)
    log.event("started", 0, {})
    before = (tmp_path / "events.jsonl").read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
    try:
        log.event("stopped", 1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert (tmp_path / "events.jsonl").read_text() == before


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_a_damaged_state_is_refused(content, configure, tmp_path):
    (tmp_path / "run/last").mkdir(parents=True)
    path = tmp_path / "run/last/state.pt"
    torch.save({"model": {}}, path) if content is None else path.write_bytes(content)
    (tmp_path / "run/last/state_00000008.pt").touch()
    with pytest.raises(
        ValueError,
        match=r"state\.pt: not a run's state .*; remove it to start again, or put state_00000008\.pt in its place",
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
