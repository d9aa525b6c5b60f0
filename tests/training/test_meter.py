"""What the log says of steps, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from medsam3.training.losses import LossResult, _presence_told
from medsam3.training.meter import StepMeter, Workload

TERMS = {"class": 1.0, "class_aux_0": 2.0, "class_o2m": 3.0, "class_aux_4_o2m": 4.0}


def result(factor: float, presence: list[float], **matched: int) -> LossResult:
    terms = {name: torch.tensor(value * factor) for name, value in TERMS.items()}
    return LossResult(torch.tensor(10.0 * factor), terms, torch.tensor(presence), matched)


def optimizer(*groups: tuple[str, int, float]) -> torch.optim.Optimizer:
    made = [{"params": [torch.zeros(1)], "part": part, "block": block, "lr": rate} for part, block, rate in groups]
    return torch.optim.SGD(made)


def test_two_steps_by_hand():
    meter = StepMeter(torch.device("cpu"))
    for norm in (0.5, 5.0):
        meter.add_gradient_norm(torch.tensor(norm), torch.tensor([3.0, 1.0, 4.0]), ["text", "vision", "text"], 1.0)
    meter.add(result(1, [2, 1, 1, 1], targets=4, one_to_one=4, one_to_many=9), images=1, queries=3)
    meter.add(result(3, [1, 0, 0, 0], targets=6, one_to_one=5, one_to_many=1), images=1, queries=2)
    one, other, last = ("vision", 1, 1e-6), ("vision", 32, 2e-6), ("text", 0, 3e-6)
    values = meter.read(optimizer(one, other, last, ("vision", 0, 4e-6), ("vision", 2, 1e-3)))
    measured = {name for name in values if name.startswith(("speed/", "memory/"))}
    assert {name: value for name, value in values.items() if name not in measured} == pytest.approx(
        {
            "loss/total": 20,
            "loss/class": 2,
            "loss_layers/class_1": 4,
            "loss_o2m/class": 6,
            "loss_layers_o2m/class_5": 8,
            "presence/accuracy_present": 1 / 3,
            "presence/accuracy_absent": 1,
            "matched/targets_per_query": 2,
            "matched/one_to_one": 0.9,
            "matched/one_to_many": 1,
            "lr/vision": 1e-3,
            "lr/text": 3e-6,
            "lr_vision/block_01": 1e-6,
            "lr_vision/block_32": 2e-6,
            "gradient/norm": 5,
            "gradient/clipped_share": 0.5,
            "gradient/skipped_steps": 0,
            "gradient_norm/text": 5,
            "gradient_norm/vision": 1,
        }
    )


def test_speed_and_mfu_are_of_the_time_between_two_readings(monkeypatch):
    clock = iter([0.0, 1.0, 1.5, 2.0, 9.0, 11.0, 11.0])  # made, a batch waited for (0.5 s), paused (7 s), read
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = StepMeter(torch.device("cpu"), Workload(of_image=2e12, of_query=5e11, peak=1e13))
    assert next(meter.waiting(["batch"])) == "batch"
    with meter.paused():
        pass
    meter.add(result(1, [2, 1, 1, 1], targets=4, one_to_one=4, one_to_many=9), images=3, queries=8)
    values = meter.read(optimizer(("text", 0, 1.0)))
    assert values["speed/images_per_s"] == 3 / 4 and values["speed/queries_per_s"] == 2
    assert values["speed/data_wait_share"] == 0.5 / 4
    assert values["speed/mfu"] == pytest.approx((3 * 2e12 + 8 * 5e11) / 4 / 1e13)


def test_the_speed_is_of_all_processes(monkeypatch):
    """Each step has the same images in all, but not the same queries: here one each in the mean of two."""
    monkeypatch.setattr("medsam3.training.meter.distributed.world_size", lambda: 2)
    monkeypatch.setattr("medsam3.training.meter.distributed.mean_over_ranks", torch.ones_like)
    values = StepMeter(torch.device("cpu")).read(optimizer(("text", 0, 1.0)))
    assert values["speed/images_per_s"] == 0 and values["speed/queries_per_s"] > 0


def test_the_speed_after_a_resumption_is_of_what_was_done_since():
    before = StepMeter(torch.device("cpu"))
    before.add(result(1, [2, 1, 1, 1], targets=4, one_to_one=4, one_to_many=9), images=3, queries=8)
    values = StepMeter(torch.device("cpu"), state=before.state()).read(optimizer(("text", 0, 1.0)))
    assert values["loss/total"] == 10 and values["speed/images_per_s"] == values["speed/queries_per_s"] == 0


def test_nothing_is_said_of_what_was_not_asked():
    meter = StepMeter(torch.device("cpu"))
    meter.add(result(1, [0, 2, 0, 1], targets=0, one_to_one=0, one_to_many=0), images=1, queries=2)
    values = meter.read(optimizer(("text", 0, 1.0)))
    said = {name: value for name, value in values.items() if name.startswith(("presence", "matched", "lr_vision"))}
    assert said == {"presence/accuracy_absent": 0.5, "matched/targets_per_query": 0}


def test_presence_is_right_where_the_logit_has_the_sign_of_the_truth():
    told = _presence_told(torch.tensor([2.0, -1.0, -3.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert told.tolist() == [2, 3, 1, 2]
