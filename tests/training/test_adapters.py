"""Training of adapters: `best` is a plain SAM3, and a stopped run goes on bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from medsam3.checkpoints.weights import open_checkpoint
from medsam3.training import trainer
from tests.training.test_trainer import interrupting

pytest.importorskip("peft", reason="the extra `lora` is not installed")
LORA = ("model.adapt.mode=lora", "model.adapt.dropout=0.1", "optim.lr.vision=0.1", "optim.lr.text=0.1")


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/total"] for line in lines if "loss/total" in line]


def test_adapters_resume_and_export(configure, monkeypatch, tmp_path):
    trainer.train(configure(*LORA, "trainer.max_steps=4", "trainer.average_decay=0.9"))
    part = (*LORA, "trainer.max_steps=4", "trainer.average_decay=0.9", f"output_dir={tmp_path}/part")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "save", interrupting(trainer.save))
        trainer.train(configure(*part, "trainer.save_every_steps=2"))
    trainer.train(configure(*part))
    assert losses(tmp_path / "part") == losses(tmp_path / "run")
    whole, parts = (torch.load(tmp_path / f"{name}/last/state.pt", weights_only=True) for name in ("run", "part"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    assert any(".lora_B." in name and value.any() for name, value in whole["model"].items())
    best = open_checkpoint(tmp_path / "run/best", "detector").tensors
    assert not any("lora" in name for name in best)
    with pytest.raises(ValueError, match="lora"):
        open_checkpoint(tmp_path / "run/last", "detector")
