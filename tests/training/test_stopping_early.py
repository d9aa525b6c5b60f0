"""trainer.patience: a run ends when validations no longer find a better Dice, and says so."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from medsam3.results.scores import Score
from medsam3.training import trainer
from medsam3.training.resume import Progress
from medsam3.training.stopping import StopRequest


def validations(monkeypatch, patience: int | None, dices: list[float]) -> tuple[Progress, list[str]]:
    """Epochs of one step of which each finds the next of these values."""
    lines: list[str] = []
    told = iter(dices)
    log = SimpleNamespace(line=lines.append, ends_with=lambda _: False)
    for name in ("scalars", "pictures", "event"):
        setattr(log, name, lambda *_: None)

    def evaluated(*_: Any) -> tuple[Any, dict[str, float]]:
        means = {"dice": next(told)}
        counts = {"ceiling": 1, "queries": 1, "images": 1, "absent": 0, "answered": None, "left_out": {"dice": 0}}
        score = Score(values=means, with_absent=means, **counts)
        found = {"main_scores": {"a": score}, "scores": {"top1": {"a": score}}, "instances": {}}
        return SimpleNamespace(**found, overlays={}, rule="top1"), {}

    def epoch(run: Any, *_: Any) -> None:
        run.progress.step += 1
        run.progress.images, run.progress.validated = 1, False

    for name in ("save", "check_best", "_log_asked", "write_best"):
        monkeypatch.setattr(trainer, name, lambda *_: None)
    monkeypatch.setattr(trainer, "_run_epoch", epoch)
    monkeypatch.setattr(trainer, "_evaluate", evaluated)
    run = SimpleNamespace(
        config=SimpleNamespace(trainer=SimpleNamespace(timeout_minutes=30, patience=patience)),
        progress=Progress(),
        total_steps=len(dices),
        sampler=SimpleNamespace(images=1, set_position=lambda *_: None),
        loader=[],
        device=None,
        stop=StopRequest(),
        log=log,
        average=None,
        detector=None,
        meter=SimpleNamespace(asked={}, paused=nullcontext),
        loaded=None,
    )
    monkeypatch.setattr(trainer.distributed, "is_main", lambda: False)
    trainer._run_epochs(run)
    return run.progress, lines


@pytest.mark.parametrize(
    ("patience", "dices", "steps"),
    [
        (2, [0.5, 0.4, 0.6, 0.6, 0.59, 0.9], 5),  # as good is no gain; the second without one ends it
        (2, [0.5, 0.4, 0.6, 0.3, 0.7, 0.6], 6),
        (None, [0.5, 0.4, 0.3, 0.2], 4),
        (2, [0.0, 0.0, 0.0, 0.0, 0.5, 0.5], 6),  # nothing is found yet
    ],
)
def test_so_many_validations_without_a_gain_end_the_run(monkeypatch, patience, dices, steps):
    progress, lines = validations(monkeypatch, patience, dices)
    assert progress.step == steps and progress.best_dice == max(dices[:steps])
    early = [line for line in lines if "ends early" in line]
    assert len(early) == (steps < len(dices))
    if early:
        assert "at step 5 of 6: 2 validations in a row were not better than 0.600 (trainer.patience)" in early[0]


def test_a_run_that_never_found_anything_says_so(monkeypatch):
    progress, lines = validations(monkeypatch, 2, [0.0] * 5)
    assert progress.step == 5 and "`best` is of the first one" in lines[-1]
    assert "best` is" not in validations(monkeypatch, None, [0.0, 0.1])[1][-1]
