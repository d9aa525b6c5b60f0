"""A step that cannot be taken is left out on all ranks alike, its samples are named, and no state is poisoned."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
import torch

from medsam3.data.batch import one_ahead
from medsam3.data.corpus import open_corpus
from medsam3.training import step as step_module
from medsam3.training import trainer
from medsam3.training.losses import SetPredictionLoss
from medsam3.training.run import set_up
from tests.training.waits import Waits


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder) -> dict:
    return torch.load(folder / "last/state.pt", weights_only=True)


def poisoned_loss(monkeypatch, calls: set[int]) -> None:
    """The total of these calls of the loss is NaN."""
    original, count = SetPredictionLoss.__call__, iter(range(10**6))

    def loss(self, *args):
        result = original(self, *args)
        if next(count) in calls:
            result.total = result.total * math.nan
        return result

    monkeypatch.setattr(SetPredictionLoss, "__call__", loss)


def test_a_loss_that_is_not_finite_costs_its_step_and_nothing_else(configure, monkeypatch, tmp_path):
    poisoned_loss(monkeypatch, {1})
    trainer.train(configure("trainer.max_steps=4", "evaluation.images=1"))
    skipped = [line for line in lines(tmp_path / "run") if "skipped" in line]
    assert [line["step"] for line in skipped] == [2]
    assert skipped[0]["skipped"][0].startswith("mni152/") and skipped[0]["reasons"][0].startswith("the loss is nan")
    for name in ("loss/total", "gradient/norm", "gradient/clipped_share"):  # of a step that was not taken there is none
        assert [line["step"] for line in lines(tmp_path / "run") if name in line] == [1, 3, 4]
    counts = [value["step"].item() for value in state(tmp_path / "run")["optimizer"]["state"].values()]
    assert set(counts) == {3}  # AdamW's own count
    assert all(value.isfinite().all() for value in state(tmp_path / "run")["model"].values())


def test_a_gradient_that_is_not_finite_is_not_blamed_on_the_next_images(configure, monkeypatch, tmp_path, capsys):
    """The loss itself is finite: only the norm of the gradient tells."""
    original, count = step_module._backward, iter(range(10**6))

    def backward(run, *args, **options):
        passed = original(run, *args, **options)
        if next(count) == 0:
            next(p for p in run.detector.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return passed

    monkeypatch.setattr(step_module, "_backward", backward)
    trainer.train(configure("trainer.max_steps=2", "evaluation.images=1"))
    assert "step 1 left out: the gradient is not finite; samples: mni152/" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in state(tmp_path / "run")["model"].values())


def test_so_many_skipped_steps_in_a_row_stop_the_run_and_last_is_kept(configure, monkeypatch, tmp_path):
    poisoned_loss(monkeypatch, {2, 4, 5, 6})  # the single one in between does not count
    with pytest.raises(ValueError, match=r"3 steps in a row .* samples: mni152/.* those of step 4\. .*optim\.lr"):
        trainer.train(configure("trainer.max_skipped_steps=3", "trainer.save_every_steps=2", "trainer.max_steps=9"))
    stored = state(tmp_path / "run")
    assert stored["progress"]["step"] == 6 and stored["progress"]["skipped"] == 2
    assert all(value.isfinite().all() for value in stored["model"].values())


def test_weights_that_are_not_finite_are_never_saved(configure, monkeypatch, tmp_path):
    original = torch.optim.AdamW.step

    def overflow(self, *args, **options):
        original(self, *args, **options)
        if next(iter(self.state.values()))["step"] == 2:
            self.param_groups[0]["params"][0].data[0] = math.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(ValueError, match=r"after step 2 the weights are not finite, so .*/last is left as it was"):
        trainer.train(configure("trainer.save_every_steps=1", "trainer.max_steps=5"))
    assert state(tmp_path / "run")["progress"]["step"] == 1


def test_the_host_waits_twice_in_a_step(configure):
    """For the costs of the matching and for the decision to take the step; what backward computes anew counts too.

    Not in it: the average of weights, which asks for its count of updates, a number that lies on the host.
    """
    config = configure(
        "experiment=recommended",
        "trainer.average_decay=null",
        "data.absent_concepts=1",
        "data.max_queries=3",
        "model.activation_checkpointing=all",
    )
    run = set_up(config, open_corpus(config.data, config.datasets), torch.device("cpu"))
    for group in run.optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    (batch, *_) = one_ahead(islice(run.loader, 1), run.device)
    with Waits() as waits:
        step_module.optimizer_step(run, [batch], run.meter)
    run.log.close()
    assert run.progress.step == 1 and run.progress.skipped == 0
    assert waits.found == ["cpu", "tolist"]
