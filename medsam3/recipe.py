"""The typed form of model, loss and optimizer in configs/train.yaml: types alone, as in config.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class RegularisationConfig:
    """Rates of Meta's training that transformers' model lacks: see model/regularisation.py."""

    stochastic_depth: float = MISSING  # of the last ViT layer; rises from 0 in the first
    attention_dropout: float = MISSING
    feed_forward_dropout: float = MISSING


@dataclass
class AdaptConfig:
    """What of the model is trained."""

    mode: str = MISSING  # full | decoder_only (the encoders stay) | lora (adapters in the encoders, the rest in full)
    rank: int = MISSING  # of lora
    alpha: int = MISSING  # the adapters count alpha / rank times
    dropout: float = MISSING


@dataclass
class ModelConfig:
    checkpoint: str = MISSING  # hub id, folder, checkpoint file, or "tiny" (random weights)
    image_size: int = MISSING  # side of the square model input, px
    activation_checkpointing: str = MISSING  # none | vision | all: what backward computes anew; auto: by memory
    compile: str = MISSING  # auto | none | vision | all: what torch.compile fuses; auto: vision on a GPU
    one_to_many_queries: bool = MISSING  # run the auxiliary one-to-many branch in training
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    regularisation: RegularisationConfig = field(default_factory=RegularisationConfig)


@dataclass
class MatcherConfig:
    """Hungarian (one-to-one) matcher, Table 2."""

    class_cost: float = MISSING
    box_cost: float = MISSING
    giou_cost: float = MISSING
    alpha: float = MISSING
    gamma: float = MISSING


@dataclass
class OneToManyConfig:
    """Auxiliary one-to-many matcher and the weight of its branch, Table 2."""

    weight: float = MISSING
    top_k: int = MISSING
    threshold: float = MISSING
    alpha: float = MISSING
    on_auxiliary_layers: bool = MISSING  # false: auxiliary layers of the branch use the Hungarian matcher


@dataclass
class FindLossConfig:
    class_weight: float = MISSING
    presence_weight: float = MISSING
    box_weight: float = MISSING
    giou_weight: float = MISSING
    alpha: float = MISSING
    gamma: float = MISSING
    positive_weight: float = MISSING
    padded_queries: int = MISSING
    presence_alpha: float = MISSING


@dataclass
class SemanticLossConfig:
    focal_weight: float = MISSING
    dice_weight: float = MISSING
    presence_weight: float = MISSING
    alpha: float = MISSING
    gamma: float = MISSING


@dataclass
class MaskLossConfig:
    focal_weight: float = MISSING
    dice_weight: float = MISSING
    alpha: float = MISSING
    gamma: float = MISSING


@dataclass
class LossConfig:
    variant: str = MISSING  # paper | sam3 | box_only
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    one_to_many: OneToManyConfig = field(default_factory=OneToManyConfig)
    find: FindLossConfig = field(default_factory=FindLossConfig)
    semantic: SemanticLossConfig = field(default_factory=SemanticLossConfig)
    mask: MaskLossConfig = field(default_factory=MaskLossConfig)
    scale_by_batch: bool = MISSING  # multiply the total by sqrt(queries on the rank)


@dataclass
class LearningRates:
    """One entry per part of Sam3Model, in its own terms."""

    decoder: float = MISSING
    mask_head: float = MISSING
    scoring: float = MISSING
    encoder: float = MISSING
    vision: float = MISSING
    text: float = MISSING
    geometry: float = MISSING


@dataclass
class ScheduleConfig:
    """Linear warm-up, inverse square root decay, linear cool-down; in optimizer steps or, below 1, in runs."""

    warmup: float = MISSING
    timescale: float = MISSING
    cooldown: float = MISSING
    constant_parts: list[str] = MISSING  # parts of LearningRates that keep their rate


@dataclass
class OptimConfig:
    lr: LearningRates = field(default_factory=LearningRates)
    layer_decay: float = MISSING
    layer_decay_depth: int | None = MISSING  # null: as many blocks as the vision backbone has
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    clip_norm: float = MISSING
    reference_batch: int | None = MISSING  # images of a step that lr is for, x sqrt(images / these); null: any
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
