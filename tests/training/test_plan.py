"""The plan of a step: its counts against torch's own, against real tensors, and what it decides."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Model

from medsam3.benchmarks import planning
from medsam3.config import TrainConfig
from medsam3.model.detector import TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.tiny import tiny_config
from medsam3.training import plan as plan_module
from medsam3.training.kernels import Kernels, Work
from medsam3.training.plan import CARDS, Load, Plan, card_of, fitting, peak_flops, plan_step
from tests.scripts import SMALL
from tests.training.conftest import composed

CARD = CARDS["h100"]
TINY = tiny_config(112)


SETTINGS = ("model.image_size=112", "loss.variant=sam3", "data.max_queries=2")


@pytest.fixture
def config(configure):
    return configure(*SETTINGS)


def planned(config):
    return plan_step(config, TINY, Load(images=4, queries=2, instances=1), CARD)


@pytest.fixture(scope="module")
def plain():
    return planned(composed("train", TrainConfig, *SMALL, *SETTINGS))


def test_memory_is_that_of_the_tensors_that_live():
    kernels = Kernels(CARD)
    with kernels:
        first = torch.zeros(1024)  # 4096 bytes
        second = first * 2
        view = second.view(32, 32)
        del first, second
        assert sum(size for size, _ in kernels.held().values()) == 4096
        del view
        (torch.ones(256) + 1).sum()
    assert kernels.held() == {}
    assert sum(size for size, _ in kernels.held(kernels.fullest()).values()) == 8192
    assert sum(work.launches for work in kernels.work.values()) == 5  # zeros, product, ones, sum, sum


def test_products_are_those_that_torch_counts(plain):
    model = Sam3Model(TINY)
    detector = TextDetector(model, one_to_many=True).train()
    inputs = plan_module._batch(plain.load, 112).inputs
    with FlopCounterMode(display=False) as counter:
        output = detector(*inputs)
    assert type(output.presence) is torch.Tensor  # not a fake one out of a cache of transformers
    assert plain.flops == pytest.approx(3 * counter.get_total_flops(), rel=0.1)  # backward: twice the forward pass


def test_memory_is_accounted_for(plain, config):
    """What is fixed to the byte; images, and what is computed anew."""
    model = Sam3Model(TINY)
    weights = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    freeze_unreached(model, "sam3")
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert plain.memory_gib["parameters"] * 2**30 == pytest.approx(weights, rel=0.01)
    assert plain.memory_gib["optimizer"] * 2**30 == pytest.approx(2 * trained, rel=0.05)
    assert "average" not in plain.memory_gib
    config.model.activation_checkpointing = "all"
    config.trainer.average_decay = 0.99
    config.model.adapt.mode = "lora"
    anew = planned(config)
    assert anew.memory_gib["average"] == pytest.approx(anew.memory_gib["parameters"])
    assert anew.memory_gib["optimizer"] < 0.5 * plain.memory_gib["optimizer"]
    parts = ("vision", "encoder", "decoder", "mask_head")
    kept = [sum(plan.memory_gib.get(part, 0) for part in parts) for plan in (plain, anew)]
    assert kept[1] < 0.5 * kept[0]


def test_auto_takes_the_first_that_fits_and_what_cannot_fit_is_refused(config, monkeypatch):
    sizes = {"none": 40.0, "vision": 20.0, "all": 10.0}

    class Fixed:
        def __init__(self, gib):
            self.gib, self.memory_gib, self.model_flops = gib, {"vision": gib}, (3.0, gib)

    monkeypatch.setattr(plan_module, "plan_step", lambda c, *_: Fixed(sizes[c.model.activation_checkpointing]))
    config.model.activation_checkpointing = "auto"
    assert fitting(config, TINY, 80, 1).checkpointing == "none"
    assert fitting(config, TINY, 42, 1).checkpointing == "vision"
    found = fitting(config, TINY, 14, 1)
    assert found.checkpointing == "all" and found.model_flops == (3.0, 40.0)  # of a step that computes nothing anew
    assert "close to the limit" in fitting(config, TINY, 11, 1).said
    monkeypatch.setattr(planning, "training_config", lambda *_: config)  # the table takes what a run takes
    assert planning.planned("tiny", "rtx4090", [], 1, 1, 1)[0] == "vision"  # 20 GiB and the reserve of 23.6
    assert planning.planned("tiny", "rtx4080", [], 1, 1, 1)[0] == "all"
    with pytest.raises(ValueError, match=r"does not fit the GPU: it plans 10\.0 GiB of 9\.0 .*hardware=gpu_24gb"):
        fitting(config, TINY, 9, 1)
    config.model.activation_checkpointing = "none"
    with pytest.raises(ValueError, match=r"plans 40\.0 GiB"):
        fitting(config, TINY, 30, 1)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", None),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_its_name_and_its_variants_are_others(name, card):
    assert card_of(name) == card
    assert peak_flops(name, bf16=True) == (card and CARDS[card].bf16_flops)


def test_the_table_of_a_plan():
    plan = Plan(Load(4, 2, 1), {"vision": 70.0, "optimizer": 8.0}, {"vision": Work(1000, 2e12, 1e9, 0.1)})
    rows = planning.rows(plan, "h100")
    assert rows[0] == ("**all**", "**78.0**", "1,000", "2.0", "100")
    assert [row[0] for row in rows[1:]] == ["vision", "optimizer", "images/s on h100"]
    assert rows[-1][1:3] == ("**40.0**", "does not fit")  # 78 and the reserve are more than 79.6
