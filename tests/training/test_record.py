"""What the data sets of a model ask for stands in its card, those of the runs that it started from included."""

from __future__ import annotations

from types import SimpleNamespace

from medsam3.training import record


def test_the_licences_of_earlier_runs_bind_too(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(record, "save_transformers_folder", lambda *arguments: written.append(arguments[4]))
    monkeypatch.setattr(record, "processor", lambda *_: None)
    loaded = SimpleNamespace(model=None, tokenizer=SimpleNamespace(tokenizer=None))
    corpus = SimpleNamespace(specs={}, split_by="image", test_fraction=0.0, split_hash=None)
    settings = SimpleNamespace(
        name="second",
        model=SimpleNamespace(checkpoint="runs/first", image_size=56),
        loss=SimpleNamespace(variant="sam3"),
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
