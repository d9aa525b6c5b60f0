"""What each lever of the recipe does, measured with the tiny model on real data: a start, and short runs from it.

The start stands in for SAM3's own training: from random weights, on the same training images, with negatives, so that
it refuses what is absent. A run fine-tunes it. A quarter of the words that may be asked as absent is withheld from all
training, so that a refusal can be told from a word learnt by heart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Sam3Model

from medsam3.benchmarks.evidence import Table, work
from medsam3.benchmarks.levers import TARGET_PX, TARGETS
from medsam3.benchmarks.parts import training_config
from medsam3.benchmarks.targets import gain_by_area, mask_dice
from medsam3.checkpoints.files import SAFETENSORS
from medsam3.config import TrainConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.evaluator import asked_images
from medsam3.files import file_hash
from medsam3.layouts.instances import Mask
from medsam3.metrics.refusals import presence_auroc
from medsam3.model.detector import TextDetector
from medsam3.prediction.image import ImagePredictor
from medsam3.registry.scenes import AbsentPool, shipped_scenes
from medsam3.training.record import write_best
from medsam3.training.run import Run, set_up
from medsam3.training.step import optimizer_step

DATASETS = ("mni152", "drive", "kvasir_seg")
PARTS = ("decoder", "mask_head", "scoring", "encoder", "vision", "text", "geometry")
# The recipe at a size that a CPU trains in a minute. A small model needs larger steps than SAM3.
SETTINGS = (
    "experiment=recommended",
    "model=tiny",
    f"datasets=[{','.join(DATASETS)}]",
    "data.workers=0",
    "data.split.test_fraction=0",  # the validation part chooses nothing here
    "optim.layer_decay=1.0",
    *(f"optim.lr.{part}=5.0e-4" for part in PARTS),
    "data.own_negatives=0",  # a variant: see levers.py
    "optim.reference_batch=null",
    "trainer.images_per_process=2",
    "trainer.epochs=1000",
    "trainer.average_decay=0.999",  # of the same runs
    "prediction.score_threshold=0",  # top1 as in the paper: the best mask, whatever its score
    "evaluation.workers=0",
    "device=cpu",
    "wandb.mode=off",
)
START = (
    *(f"optim.lr.{part}=1.5e-3" for part in PARTS),
    "optim.reference_batch=4",
    "augmentation=none",
    "data.synonyms=0",
)
START_SEED = 100
IMAGES = 30  # of the validation part of a data set, at most
WORDS = 3  # asked as absent of every image, of each kind
KINDS = ("elsewhere", "hard_drawn", "easy_drawn", "hard_never", "easy_never")


@dataclass
class WithheldCorpus(Corpus):
    """A corpus in which some words are never asked as absent."""

    withheld: frozenset[str] = frozenset()

    def absent_pool(self, rows: ImageRows) -> AbsentPool:
        pool = super().absent_pool(rows)
        hard, easy = (tuple(w for w in names if w not in self.withheld) for names in (pool.hard, pool.easy))
        return AbsentPool(pool.marked, hard, easy)


@dataclass(frozen=True)
class Question:
    """An image of the validation part, what is in it, and words for what is not, by kind."""

    rows: ImageRows
    image: NDArray[np.uint8]
    present: dict[str, Mask]
    absent: dict[str, list[str]]


@dataclass(frozen=True)
class Setting:
    """What all runs of an experiment share."""

    data: tuple[str, ...]  # overrides: where data sets, split files and cache lie
    start: Path  # folder of the start
    image_size: int


Measured = dict[str, float]


def do(
    table: Table, setting: Setting, start_steps: int, steps: int, variants: Sequence[str], seeds: Sequence[int]
) -> None:
    """Make the start if it is not there, and all runs that the table lacks; a line on stderr for each.

    Raises:
        ValueError: a data set that is not prepared, a table or a start that was made with other settings.
    """
    say = partial(print, file=sys.stderr, flush=True)
    if not setting.start.exists():
        say(f"trains the start, {start_steps} steps, into {setting.start}")
        make_start(setting, start_steps)
    _compare_targets(table, setting)
    shared = {"image_size": str(setting.image_size), "start": file_hash(setting.start / SAFETENSORS)[:16]}
    nothing_done = shared | {"steps": "0", "overrides": ""}
    if not table.holds("start", START_SEED, nothing_done):
        table.add("start", START_SEED, nothing_done, measure_start(setting))
    work(table, seeds, variants, steps, shared, partial(run_once, setting), say)


def _compare_targets(table: Table, setting: Setting) -> None:
    settings = {"image_size": str(TARGET_PX), "start": "", "steps": "0", "overrides": ""}
    if table.holds(TARGETS, TARGET_PX, settings):
        return
    config = _config(setting, ())
    corpus = open_corpus(config.data, config.datasets)
    values: Measured = {}
    for name in corpus.specs:
        found = gain_by_area(corpus, name, TARGET_PX)
        low, high = found.interval or (float("nan"), float("nan"))
        values |= {f"gain/{name}": found.mean, f"low/{name}": low, f"high/{name}": high}
    table.add(TARGETS, TARGET_PX, settings, {"last": values})


def _config(setting: Setting, overrides: Sequence[str]) -> TrainConfig:
    return training_config(*SETTINGS, *setting.data, *overrides)


def make_start(setting: Setting, steps: int) -> None:
    """Train the start and write it to its folder.

    Raises:
        ValueError: a data set that is not prepared.
    """
    with _trained(setting, ("model.checkpoint=tiny", *START), steps, START_SEED) as (run, _):
        write_best(setting.start, run.loaded, run.corpus, run.config, {}, 0, steps, run.trained_images)


def measure_start(setting: Setting) -> dict[str, Measured]:
    """The start as it is."""
    with _trained(setting, (), 0, START_SEED) as (run, _):
        return {"last": _measure(_predictor(run, run.detector), run.corpus, _questions(run.corpus, run.config))}


def run_once(setting: Setting, overrides: Sequence[str], steps: int, seed: int) -> dict[str, Measured]:
    """Fine-tune the start and measure the weights of the last step (`last`) and their average (`average`).

    Raises:
        ValueError: an override that is not legal, a data set that is not prepared.
    """
    with _trained(setting, overrides, steps, seed) as (run, facts):
        questions = _questions(run.corpus, run.config)
        models = {"last": run.detector}
        if run.average is not None:
            models["average"] = TextDetector(cast(Sam3Model, run.average.module))
        return {
            name: facts | _measure(_predictor(run, detector), run.corpus, questions)
            for name, detector in models.items()
        }


@contextlib.contextmanager
def _trained(setting: Setting, overrides: Sequence[str], steps: int, seed: int) -> Iterator[tuple[Run, Measured]]:
    """A run after its steps, and what they cost; its folder goes at the end."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medsam3_recipe_") as folder:
        own = [f"model.image_size={setting.image_size}", f"model.checkpoint={setting.start}", f"output_root={folder}"]
        own += [f"trainer.max_steps={max(1, steps)}", f"seed={seed}"]
        config = _config(setting, [*own, *overrides])
        corpus = _withheld(open_corpus(config.data, config.datasets))
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            run = set_up(config, corpus, torch.device("cpu"))
        start = time.process_time()
        drawn = _train(run) if steps else set()
        assert drawn.isdisjoint(corpus.withheld)
        facts = {"cpu_s": time.process_time() - start, "images": float(steps * run.sampler.images_per_batch)}
        yield run, facts | {"words_drawn": float(len(drawn))}
        run.log.close()


def _withheld(corpus: Corpus) -> WithheldCorpus:
    """A quarter of the words, by hash, and no concept of the data sets."""
    own = {concept for spec in corpus.specs.values() for concept in spec.concept_names}
    quarter = (w for w in shipped_scenes().seen_in if hashlib.sha256(w.encode()).digest()[0] < 64 and w not in own)
    return WithheldCorpus(**vars(corpus), withheld=frozenset(quarter))


def _train(run: Run) -> set[str]:
    """All steps; the words that were asked as absent."""
    drawn: set[str] = set()
    for batch in run.loader:
        optimizer_step(run, [batch], run.meter)
        asked = zip(batch.targets.sample_ids, batch.targets.kinds, strict=True)
        drawn |= {sample.rsplit("/", 1)[1] for sample, kind in asked if kind in ("hard", "easy")}
        if run.progress.step == run.total_steps:
            return drawn
    raise AssertionError


def _questions(corpus: Corpus, config: TrainConfig) -> list[Question]:
    """The same for every run: images spread over the validation part, words drawn by image."""
    assert isinstance(corpus, WithheldCorpus)
    asked = asked_images(corpus, dict.fromkeys(corpus.specs, "val"), replace(config.evaluation, images=IMAGES))
    own = {concept for spec in corpus.specs.values() for concept in spec.concept_names}
    found: list[Question] = []
    for rows in (rows for images in asked.values() for rows in images):
        reader = corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        masks = reader.masks(item)
        pool = Corpus.absent_pool(corpus, rows)  # the withheld words too
        absent = {"elsewhere": [word for word in (*pool.hard, *pool.easy) if word in own]}
        draw = random.Random(f"{rows.dataset}/{rows.item}")
        for kind, words in (("hard", pool.hard), ("easy", pool.easy)):
            for ending, wanted in (("drawn", False), ("never", True)):
                known = [word for word in words if (word in corpus.withheld) == wanted and word not in own]
                absent[f"{kind}_{ending}"] = draw.sample(known, min(WORDS, len(known)))
        found.append(Question(rows, reader.image(item), {c: masks[c].union() for c in rows.present}, absent))
    return found


def _predictor(run: Run, detector: TextDetector) -> ImagePredictor:
    config = run.config
    return ImagePredictor(detector, run.loaded.tokenizer, config.model.image_size, config.prediction, bf16=False)


def _measure(predictor: ImagePredictor, corpus: Corpus, questions: Sequence[Question]) -> Measured:
    """Means over the queries of a data set, and over data sets: Dice by rule of what is there; mean score by kind of
    what is not, and how often it gets an answer; AUROC of the presence that tells the two apart."""
    values: dict[str, dict[str, list[float]]] = {}  # measure -> data set -> one per query
    for question in questions:
        name = question.rows.dataset
        exclusive = corpus.exclusive(name)
        for found in predictor.predict(question.image, list(question.present), exclusive):
            for rule, answer in found.answers.items():
                value = mask_dice(answer.mask, question.present[found.concept])
                values.setdefault(f"dice_{rule}", {}).setdefault(name, []).append(value)
            values.setdefault("score_present", {}).setdefault(name, []).append(found.answers["union"].score)
            values.setdefault("presence", {}).setdefault(name, []).append(found.presence)
        words = [(kind, word) for kind in KINDS for word in question.absent[kind]]
        for (kind, _), query in zip(words, predictor.ask([question.image], [w for _, w in words]), strict=True):
            score = query.choices["union"].score
            values.setdefault(f"score_{kind}", {}).setdefault(name, []).append(score)
            for group in kind.split("_")[1:]:  # drawn | never
                values.setdefault(f"score_{group}", {}).setdefault(name, []).append(score)
                values.setdefault(f"answered_{group}", {}).setdefault(name, []).append(float(score >= 0.5))
            values.setdefault("absence", {}).setdefault(name, []).append(query.heads.presence)
    presence, absence = values.pop("presence"), values.pop("absence")
    means = {measure: {name: float(np.mean(own)) for name, own in found.items()} for measure, found in values.items()}
    means["auroc"] = {name: presence_auroc(presence[name], absence[name]) for name in presence}
    return _flat(means)


def _flat(means: Mapping[str, Mapping[str, float]]) -> Measured:
    """measure -> mean over data sets, and measure/data set -> its own."""
    flat: Measured = {measure: float(np.mean(list(found.values()))) for measure, found in means.items()}
    return flat | {f"{measure}/{name}": value for measure, found in means.items() for name, value in found.items()}
