"""What the data sets of a model ask for stands in its card, those of the runs that it started from included."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from medsam3.training import record, trainer


def test_the_licences_of_earlier_runs_bind_too(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(record, "save_transformers_folder", lambda *arguments: written.append(arguments[4]))
    monkeypatch.setattr(record, "processor", lambda *_: None)
    loaded = SimpleNamespace(model=torch.nn.Linear(1, 1), tokenizer=SimpleNamespace(tokenizer=None))
    corpus = SimpleNamespace(specs={}, split_by="image", test_fraction=0.0, split_hash=None)
    settings = SimpleNamespace(
        name="second",
        model=SimpleNamespace(checkpoint="runs/first", image_size=56),
        loss=SimpleNamespace(variant="sam3"),
        prediction=SimpleNamespace(rules=["top1"]),
    )
    record.write_best(tmp_path, loaded, corpus, settings, {}, 1, 1, {"btxrd": ["1"], "my_own": ["2"]})
    (card,) = written
    assert card.publishing == [
        "Ask the owners of some data sets before you publish these weights (see below).",
        "Publishing what is derived is forbidden by BTXRD.",
        "Commercial use is forbidden by BTXRD.",
        "Not confirmed at its home is the licence of BTXRD.",
        "No licence is recorded of my_own: look it up.",
    ]


def test_a_best_that_is_not_what_was_measured_ends_the_run(configure, tmp_path, monkeypatch):
    """One step without a fault says what it measured; then the weights are spoilt on their way to the disk."""
    trainer.train(configure("trainer.max_steps=1"))
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"check/best_dice"' in lines
    write = trainer.write_best

    def spoilt(folder, loaded, *others):
        model = copy.deepcopy(loaded.model)
        model.dot_product_scoring.query_proj.weight.data *= -1
        write(folder, dataclasses.replace(loaded, model=model), *others)

    monkeypatch.setattr(trainer, "write_best", spoilt)
    with pytest.raises(ValueError, match=r"best: read back it has a validation Dice of .*the training measured"):
        trainer.train(configure("trainer.max_steps=1", f"output_dir={tmp_path}/other"))
