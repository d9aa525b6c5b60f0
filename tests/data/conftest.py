"""Small data sets, prepared, and their queries."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.prompts import PromptDraw
from medsam3.preparation.prepare import prepare
from medsam3.registry.spec import SPEC_FOLDER
from tests.conftest import prepare_config, save_picture

SIZE = 48


def prepared(data, folder, *names: str) -> Corpus:
    prepare(prepare_config(data, list(names)), [SPEC_FOLDER, folder])
    return open_corpus(data, names, [SPEC_FOLDER, folder])


@pytest.fixture
def corpus(small_set, make_spec) -> Corpus:
    """Twelve ultrasound images; the right square is absent from every second."""
    return prepared(small_set[1], make_spec.folder, "small")


@pytest.fixture
def two_families(small_set, make_spec, tmp_path) -> Corpus:
    """The small set, whose scene nobody named, a fundus set and an endoscopy set with theirs."""
    for name, concept, modality, scene in (
        ("eyes", "optic disc", "fundus", "disc_fundus"),
        ("scope", "polyp", "endoscopy", "colonoscopy"),
    ):
        for n in range(4):
            save_picture(tmp_path / f"data/{name}/images/{n}.png", np.full((20, 20, 3), n, np.uint8))
            save_picture(tmp_path / f"data/{name}/masks/{n}.png", np.ones((20, 20), np.uint8))
        make_spec(name=name, root=name, modality=modality, scene=scene, concepts={1: concept})
    return prepared(small_set[1], make_spec.folder, "small", "eyes", "scope")


def queries(corpus, part="train", max_queries=8, seed=1, max_targets="keep", augmentation=None, **draw) -> QueryDataset:
    return QueryDataset(corpus, part, SIZE, PromptDraw(corpus, max_queries, **draw), seed, max_targets, augmentation)
