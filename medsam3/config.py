"""The typed form of every key in configs/, and the checks that need more than one key.

The numbers live in the YAML files; the dataclasses hold types only. Hydra composes the files, OmegaConf merges them into these
classes (an unknown key or a wrong type stops there), and the code receives plain dataclass instances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    checkpoint: str = MISSING  # hub id, folder, checkpoint file, or "tiny" (random weights)
    image_size: int = MISSING  # side of the square model input, px
    activation_checkpointing: bool = MISSING
    one_to_many_queries: bool = MISSING  # run the auxiliary one-to-many branch in training


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
    """Linear warm-up, inverse square root decay, linear cool-down; all in optimizer steps."""

    warmup_steps: int = MISSING
    timescale_steps: int = MISSING
    cooldown_steps: int = MISSING
    constant_parts: list[str] = MISSING  # parts of LearningRates that keep their rate


@dataclass
class OptimConfig:
    lr: LearningRates = field(default_factory=LearningRates)
    layer_decay: float = MISSING
    layer_decay_depth: int | None = MISSING  # null: as many blocks as the vision backbone has
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    clip_norm: float = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class SplitConfig:
    by: str = MISSING  # image | group
    train_fraction: float = MISSING
    seed: int = MISSING


@dataclass
class DataConfig:
    root: str = MISSING  # folder that holds the data sets as downloaded
    splits: str = MISSING  # folder of the split files that prepare_data.py writes
    cache: str = MISSING  # folder of unpacked volumes
    datasets: list[str] = MISSING  # names, or "train" for every set that the paper trains on
    split: SplitConfig = field(default_factory=SplitConfig)
    prompts: str = MISSING  # canonical | paper
    absent_concepts: int = MISSING  # prompts per training image that name something not in it
    max_queries: int = MISSING  # prompts per training image, at most
    weights: Any = MISSING  # size | sqrt | uniform | {name: weight}
    workers: int = MISSING


@dataclass
class TrainerConfig:
    epochs: int = MISSING
    images_per_process: int = MISSING
    accumulation_steps: int = MISSING
    bf16: bool = MISSING  # autocast on GPUs; no effect on CPU
    max_steps: int | None = MISSING  # stop early after so many optimizer steps
    log_every_steps: int = MISSING
    overlays: int = MISSING  # pictures per validation
    validation_images: int | None = MISSING  # images per data set in validation; null: all


@dataclass
class WandbConfig:
    mode: str = MISSING  # auto | online | offline | off
    project: str = MISSING


@dataclass
class TrainConfig:
    name: str = MISSING
    output_root: str = MISSING
    output_dir: str = MISSING
    device: str = MISSING  # auto | cpu | cuda
    seed: int = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
