"""What must hold of a composed configuration beyond the types of its keys; the ranges of numbers stand in bounds.py."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from medsam3.bounds import check_numbers
from medsam3.config import EvaluateConfig, GetDataConfig, ReportConfig, TrainConfig
from medsam3.messages import did_you_mean, one_of
from medsam3.recipe import LearningRates

T = TypeVar("T")
_ABSENT = object()
MASK_RULES = ("top1", "union", "semantic")  # as in prediction/rules.py
LEGAL: dict[str, tuple[str | None, ...]] = {
    "format": ("files", "cvpr2025"),
    "device": ("auto", "cpu", "cuda"),
    "export": (None, "nnunet"),
    "loss.variant": ("paper", "sam3", "box_only"),
    "model.activation_checkpointing": ("auto", "none", "vision", "all"),
    "trainer.exchange": ("float32", "bfloat16"),
    "model.adapt.mode": ("full", "decoder_only", "lora"),
    "model.compile": ("auto", "none", "vision", "all"),
    "data.max_targets": ("keep", "drop", "crop"),
    "data.prompts": ("canonical", "paper"),
    "data.split.by": ("image", "group"),
    "instances": ("united", "apart"),
    "orientation": ("shown", "stored"),
    "seg": ("BINARY", "LABELMAP", "NIFTI"),
    "evaluation.ask": ("present", "all"),
    "predicted_instances": ("components", "labels"),
    "prompt": ("text", "box", "noisy_box", "text_box"),
    "volume.mode": ("detector", "tracker"),
    "volume.tracker_vision": ("auto", "original", "shared"),
    "wandb.mode": ("auto", "online", "offline", "off"),
}


def typed(config: DictConfig, schema: type[T]) -> T:
    """The composed configuration as an instance of its dataclass, after all checks.

    Raises:
        ValueError: a key has no value, or values do not go together; names the key, the value and the legal ones.
    """
    try:
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ValueError(f"{getattr(error, 'full_key', error)}: no value given") from error
    assert isinstance(result, schema)
    _refuse_extra_keys(result)
    check(result)
    return result


def _refuse_extra_keys(value: Any, prefix: str = "") -> None:
    """Hydra's plus (+trainer.epoch=3) adds keys that no dataclass has, and nothing would read them."""
    legal = [field.name for field in dataclasses.fields(value)]
    for name, inner in vars(value).items():
        if name not in legal:
            raise ValueError(f"unknown key {prefix}{name}.{did_you_mean(name, legal)} Legal here: {', '.join(legal)}")
        if dataclasses.is_dataclass(inner):
            _refuse_extra_keys(inner, f"{prefix}{name}.")


def check(config: Any) -> None:
    """Checks that need more than a type: see `typed`."""
    for key, legal in LEGAL.items():
        value = _lookup(config, key)
        if value is not _ABSENT:
            one_of(key, value, legal)
    check_numbers(config)
    concepts = _lookup(config, "evaluation.concepts")
    if concepts is not _ABSENT and concepts not in ("ours", "paper") and not (isinstance(concepts, list) and concepts):
        raise ValueError(f"evaluation.concepts={concepts!r}: must be ours, paper, or a list of concepts")
    for key in ("datasets", "split"):
        value = _lookup(config, key)
        names = value if isinstance(value, list) else [value]
        all_sets = value is None and isinstance(config, GetDataConfig)
        if value is not _ABSENT and not all_sets and not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key}={value}: must be a name, or a list of names: [drive, busi]")
    rules = _lookup(config, "prediction.rules")
    if rules is not _ABSENT:
        for rule in rules:
            one_of("prediction.rules", rule, MASK_RULES)
        if not rules or len(set(rules)) < len(rules):
            raise ValueError(
                f"prediction.rules={rules}: must name one or several of {', '.join(MASK_RULES)}, each once"
            )
    tile = _lookup(config, "prediction.tile")
    if tile is not _ABSENT and tile is not None:
        _check_tiles(config, tile, rules)
    if isinstance(config, TrainConfig | EvaluateConfig) and config.evaluation.instances:
        lowest, union = config.evaluation.instance_score, config.prediction.union_threshold
        if lowest > min(0.5, union):
            raise ValueError(
                f"evaluation.instance_score={lowest}: must be at most 0.5 (cgF1) and "
                f"prediction.union_threshold={union} (F1, PQ)"
            )
    if not config.name.strip() or config.name.startswith("/") or {".", ".."} & set(config.name.split("/")):
        raise ValueError(f"name={config.name!r}: must be a folder's name below output_root, without . and ..")
    if isinstance(config, ReportConfig) and (config.results is None) == (config.run is None):
        raise ValueError(
            f"results={config.results} run={config.run}: give one of them, results=<folder of an evaluation> or "
            "run=<folder of a training run>"
        )
    if isinstance(config, TrainConfig):
        _check_training(config)
    if isinstance(config, EvaluateConfig):
        _check_evaluation(config)


def _check_tiles(config: Any, tile: int, rules: list[str]) -> None:
    overlap = config.prediction.tile_overlap
    if overlap > tile // 2:
        raise ValueError(f"prediction.tile_overlap={overlap}: must be at most half of prediction.tile={tile}")
    if "top1" in rules:
        raise ValueError(
            f"prediction.tile={tile} with prediction.rules={rules}: top1 is one mask per image; take union or semantic"
        )


def _check_evaluation(config: EvaluateConfig) -> None:
    foreign = config.evaluation.foreign.hard + config.evaluation.foreign.easy
    mask_files = config.predictions is not None or config.evaluation.save_masks
    if config.evaluation.concepts == "paper" and mask_files:
        raise ValueError(
            "evaluation.concepts=paper: mask files hold our concepts, so leave out predictions and save_masks"
        )
    if (config.predictions is not None or config.prompt != "text") and (foreign or config.evaluation.synonyms):
        raise ValueError(
            "evaluation.foreign and evaluation.synonyms ask in other words, which neither files nor boxes take; "
            "set evaluation.foreign.hard=0 evaluation.foreign.easy=0 evaluation.synonyms=false"
        )
    if config.prompt != "text":
        if config.prediction.tile is not None:
            raise ValueError(f"prompt={config.prompt}: boxes are of whole images; set prediction.tile=null")
        if config.evaluation.ask != "present":
            raise ValueError(f"prompt={config.prompt}: needs evaluation.ask=present, as what is not there has no box")
        if config.predictions is not None:
            raise ValueError(f"prompt={config.prompt} with predictions={config.predictions}: files are asked nothing")


def _check_training(config: TrainConfig) -> None:
    for key, what in (("save_masks", "writes masks"), ("synonyms", "asks by synonyms")):
        if getattr(config.evaluation, key):
            raise ValueError(f"evaluation.{key}=true: evaluate.py {what}, training does not")
    weights = config.data.weights
    numbers = isinstance(weights, dict) and all(isinstance(value, int | float) for value in weights.values())
    if not numbers and weights not in ("size", "sqrt", "uniform"):
        raise ValueError(f"data.weights={weights!r}: must be size, sqrt, uniform or a mapping of data set to weight")
    if len(config.optim.betas) != 2:
        raise ValueError(f"optim.betas={config.optim.betas}: must be two numbers, for example [0.9, 0.999]")
    parts = [f.name for f in dataclasses.fields(LearningRates)]
    for part in config.optim.schedule.constant_parts:
        if part not in parts:
            raise ValueError(f"optim.schedule.constant_parts: {part!r} is not one of {', '.join(parts)}")
    if config.data.absent_concepts and config.data.max_queries <= config.data.absent_concepts:
        raise ValueError(
            f"data.max_queries={config.data.max_queries} leaves no room for a present concept beside "
            f"data.absent_concepts={config.data.absent_concepts}: raise it to {config.data.absent_concepts + 1} or more"
        )
    if config.data.hard_negatives > config.data.absent_concepts:
        raise ValueError(
            f"data.hard_negatives={config.data.hard_negatives}: they are among the absent concepts, so at most "
            f"data.absent_concepts={config.data.absent_concepts}"
        )
    if config.model.one_to_many_queries is False and config.loss.one_to_many.weight:
        raise ValueError(
            f"model.one_to_many_queries=false with loss.one_to_many.weight={config.loss.one_to_many.weight}: "
            "set the weight to 0 or switch the branch on"
        )


def _lookup(config: Any, dotted_key: str) -> Any:
    value = config
    for name in dotted_key.split("."):
        if not hasattr(value, name):
            return _ABSENT
        value = getattr(value, name)
    return value


def differing_keys(stored: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: stored -> current" for all leaves that differ."""
    lines: list[str] = []
    for key in sorted(stored.keys() | current.keys(), key=str):
        old, new = stored.get(key, "(absent)"), current.get(key, "(absent)")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines
