"""What an evaluation measures, opened from its configuration: a checkpoint, or a folder of masks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medsam3.checkpoints.weights import weights_hash
from medsam3.config import EvaluateConfig, PredictionConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import Answers, BoxNoise, ModelAnswers
from medsam3.evaluation.honesty import chosen_on, refuse_training_rows, trained_on, training_record
from medsam3.evaluation.mask_files import MaskFiles
from medsam3.files import file_hash
from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3, local_checkpoint
from medsam3.prediction.image import ImagePredictor
from medsam3.results.asking import queries
from medsam3.results.question import MASKS


@dataclass(frozen=True, kw_only=True)
class Source:
    """Answers, and what results.json says of where they come from (see `Question`)."""

    answers: Answers
    report: list[str]  # lines for the user
    chosen_on: list[str]  # data sets whose rows asked for have chosen the checkpoint
    trained_on: dict[str, str]  # those that it may have seen rows of, and how one knows (allow_training_rows)
    checkpoint: str
    weights_sha256: str
    image_size: int | None
    own_image_size: int | None
    prediction: PredictionConfig
    prompt: str
    box_noise: str | None
    precision: str | None


def open_source(
    config: EvaluateConfig,
    corpus: Corpus,
    parts: Mapping[str, str],
    asked: Mapping[str, list[ImageRows]],
    device: torch.device,
) -> Source:
    """
    Raises:
        ValueError: a checkpoint that cannot be loaded or that was trained on the rows asked for; see `MaskFiles`.
    """
    if config.predictions is not None:
        return _files(config, corpus, asked, Path(config.predictions))
    path = local_checkpoint(config.checkpoint)
    record = training_record(path) if path else None
    if record is not None and not config.allow_training_rows:
        refuse_training_rows(config.checkpoint, record, corpus, parts, asked)
    torch.manual_seed(config.seed)  # the weights of `tiny`
    loaded = load_sam3(config.checkpoint, config.image_size)
    report = [f"model    {loaded.report}"]
    if loaded.image_size != loaded.own_image_size:
        report.append(
            f"WARNING  image_size={loaded.image_size}: the checkpoint was trained at {loaded.own_image_size} px; "
            "expect lower scores (image_size=null takes its own)"
        )
    if config.prompt != "text":
        report.append(f"WARNING  prompt={config.prompt}: the model is shown where the truth lies")
    weights = weights_hash(loaded.model)
    detector = TextDetector(loaded.model).to(device).eval()
    predictor = ImagePredictor(detector, loaded.tokenizer, loaded.image_size, config.prediction, config.bf16)
    noisy = config.prompt == "noisy_box"
    noise = BoxNoise(config.box_noise, config.box_noise_max_px, config.seed)
    return Source(
        answers=ModelAnswers(predictor, corpus, config.prompt, noise, config.evaluation.detected_from),
        report=report,
        chosen_on=chosen_on(record, corpus, parts),
        trained_on=trained_on(record, corpus, parts, asked) if record and config.allow_training_rows else {},
        checkpoint=config.checkpoint,
        weights_sha256=weights,
        image_size=loaded.image_size,
        own_image_size=loaded.own_image_size,
        prediction=config.prediction,
        prompt=config.prompt,
        box_noise=f"{config.box_noise} of its side, at most {config.box_noise_max_px} px" if noisy else None,
        precision="bfloat16" if config.bf16 and device.type == "cuda" else "float32",
    )


def _files(config: EvaluateConfig, corpus: Corpus, asked: Mapping[str, list[ImageRows]], folder: Path) -> Source:
    if folder.resolve().is_relative_to(Path(config.output_dir).resolve()):
        raise ValueError(
            f"predictions={folder}: lies in output_dir={config.output_dir}, whose masks are removed: give another name="
        )
    instances = config.predicted_instances if config.evaluation.instances else None
    answers = MaskFiles(folder, corpus, queries(corpus, asked, config.evaluation), instances)
    digest = hashlib.sha256()
    for path in answers.files:
        digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return Source(
        answers=answers,
        report=[f"masks    {len(answers.files)} files of {folder}; what they were trained on is not known here"],
        checkpoint=str(folder),
        weights_sha256=digest.hexdigest(),
        image_size=None,
        own_image_size=None,
        prediction=dataclasses.replace(config.prediction, rules=[MASKS]),
        chosen_on=[],
        trained_on={},
        prompt=MASKS,
        box_noise=None,
        precision=None,
    )
