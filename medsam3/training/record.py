"""What a model was trained on, written into every `best` folder; evaluation/honesty.py reads it."""

from __future__ import annotations

import math
from pathlib import Path

from medsam3.checkpoints.model_card import ModelCard, TrainingData
from medsam3.checkpoints.weights import save_transformers_folder
from medsam3.config import TrainConfig
from medsam3.data.corpus import Corpus
from medsam3.evaluation.honesty import TrainingRecord
from medsam3.metrics.masks import METRICS
from medsam3.model.adapt import merged
from medsam3.model.load import LoadedModel, processor
from medsam3.registry.cards import card_names, load_card
from medsam3.registry.licences import Licence, publishing
from medsam3.results.scores import Score, mean_score
from medsam3.training.losses import HEADS
from medsam3.versions import code_version


def write_best(
    folder: Path,
    loaded: LoadedModel,
    corpus: Corpus,
    config: TrainConfig,
    scores: dict[str, Score],
    epoch: int,
    step: int,
    trained_images: dict[str, list[str]],
) -> None:
    """Write a model for its users: a transformers folder with a model card and the record of its training data.

    Args:
        scores: of the validation that found this model to be the best so far.
        trained_images: fingerprints of the training images of each data set, those of earlier runs included.
    """
    card = ModelCard(
        name=config.name,
        started_from=config.model.checkpoint,
        image_size=config.model.image_size,
        split_by=corpus.split_by,
        step=step,
        epoch=epoch,
        loss=config.loss.variant,
        heads=HEADS[config.loss.variant],
        rule=config.prediction.rules[0],
        code=code_version(),
        validation=_shown(mean_score(scores)) if scores else {},
        data=[_training_data(corpus, name, scores.get(name)) for name in corpus.specs],
        publishing=publishing(map(_licence, dict.fromkeys([*corpus.specs, *trained_images]))),
    )
    record = TrainingRecord(
        image_size=config.model.image_size,
        split_by=corpus.split_by,
        test_fraction=corpus.test_fraction,
        splits={name: corpus.split_hash(name) for name in corpus.specs},
        validation={name: score.values for name, score in scores.items()},
        epoch=epoch,
        step=step,
        images=trained_images,
    )
    save_transformers_folder(
        merged(loaded.model),
        loaded.tokenizer.tokenizer,
        processor(loaded.tokenizer.tokenizer, config.model.image_size),
        folder,
        card,
        record.json(),
    )


def _shown(score: Score) -> dict[str, str]:
    """Heading of each metric, with the unit of a distance -> its value, as tables print it."""
    shown = {}
    for name, value in score.values.items():
        metric = METRICS[name]
        heading = f"{metric.named(score.unit)} (%)" if metric.is_fraction else metric.named(score.unit)
        if math.isfinite(value):
            shown[heading] = f"{metric.printed(value):.1f}"
    return shown


def _licence(name: str) -> Licence:
    return load_card(name).rights if name in card_names() else Licence(name, None, False)


def _training_data(corpus: Corpus, name: str, score: Score | None) -> TrainingData:
    licence = load_card(name).licence if name in card_names() else "not recorded"
    return TrainingData(
        name=name,
        title=corpus.specs[name].title,
        licence=str(licence),
        split_sha256=corpus.split_hash(name),
        train_images=len(corpus.manifest.select("train", name)),
        validation_images=len(corpus.manifest.select("val", name)),
        prompts=[corpus.prompt(name, concept) for concept in corpus.specs[name].concept_names],
        validation=_shown(score) if score else {},
    )
