"""`last`: with which settings and data a run may go on from it, and what is kept of it."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from medsam3.data import sampler
from medsam3.training import resume, trainer
from tests.training.test_survival import STEPS, at_step, ending, lines, state


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    monkeypatch.setattr(sampler, "_shares", lambda *_: np.asarray([STEPS]))


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
