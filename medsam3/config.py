"""The typed form of every key in configs/; checks.py holds what must hold of their values.

The numbers live in the YAML files; the dataclasses hold types only. Hydra composes the files and merges them into these
classes (an unknown key or a wrong type stops there), and the code receives plain dataclass instances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from medsam3.recipe import LossConfig, ModelConfig, OptimConfig


@dataclass
class SplitConfig:
    by: str = MISSING  # image | group
    train_fraction: float = MISSING
    test_fraction: float = MISSING  # of the images, from those that are not for training; 0: no test part (paper)
    seed: int = MISSING


@dataclass
class DataConfig:
    """Where the data lie and how they are split: shared by prepare, train and evaluate."""

    root: str = MISSING  # folder that holds the data sets as downloaded
    splits: str = MISSING  # folder of the split files that prepare_data.py writes
    cache: str = MISSING  # folder of unpacked volumes
    split: SplitConfig = field(default_factory=SplitConfig)
    prompts: str = MISSING  # canonical | paper


@dataclass
class LookConfig:
    """How pictures of a modality may differ; see configs/augmentation/by_modality.yaml."""

    orientation: str = MISSING  # none | mirror | all
    crop: float = MISSING
    brightness: float = MISSING
    contrast: float = MISSING
    gamma: float = MISSING
    blur: float = MISSING
    noise: float = MISSING
    stain: float = MISSING


@dataclass
class AugmentationConfig:
    chance: float = MISSING
    smallest: float = MISSING
    sided: list[str] = MISSING
    unpadded: list[str] = MISSING
    modalities: dict[str, LookConfig] = MISSING  # empty: no augmentation


@dataclass
class TrainDataConfig(DataConfig):
    absent_concepts: int = MISSING  # prompts per training image that name something not in it
    hard_negatives: int = MISSING  # of them, at least so many marked absent or look-alikes
    own_negatives: float = MISSING  # chance that an absent one beyond the hard is one that other images of the run show
    synonyms: float = MISSING  # chance that a concept is asked for by a synonym
    max_queries: int = MISSING  # prompts per training image, at most
    max_targets: str = MISSING  # concepts with more instances than the model has answers: keep | drop | crop
    weights: Any = MISSING  # size | sqrt | uniform | {name: weight}
    max_repeats: int | None = MISSING  # times that an image comes in an epoch, at most
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    workers: int = MISSING  # data loading processes per rank


@dataclass
class PredictionConfig:
    """How the model's answers become masks; the same in validation, evaluation and prediction."""

    rules: list[str] = MISSING  # top1 | union | semantic (prediction/rules.py); the first one chooses the model
    score_threshold: float = MISSING  # 0..1; top1: a best mask of a lower score counts as empty; 0: none does (paper)
    union_threshold: float = MISSING  # 0..1; union: instances of at least this score
    presence_threshold: float = MISSING  # 0..1; semantic: a concept of less presence counts as absent
    resolve_overlaps: bool = MISSING  # exclusive concepts: pixel-wise highest confidence (paper, section 4.2)
    queries_per_pass: int = MISSING  # prompts per forward pass on one image
    tile: int | None = MISSING  # px; larger images are cut into tiles of this side (prediction/tiles.py); null: none is
    tile_overlap: int = MISSING  # px that neighbouring tiles share, at least


@dataclass
class ForeignConfig:
    """Words asked of every image that its kind of picture cannot show (data_manifests/scenes.yaml), drawn by image."""

    hard: int = MISSING  # how many that others of its modality can show, or that are easily taken for what it shows
    easy: int = MISSING  # how many of the rest
    seed: int = MISSING


@dataclass
class EvaluationConfig:
    """What is asked and shown; the same in validation and in evaluate.py."""

    metrics: list[str] = MISSING  # names of metrics/masks.METRICS, dice among them
    instances: bool = MISSING  # also AP, F1, PQ and cgF1 of single instances, whatever the mask rules
    instance_score: float = MISSING  # 0..1; of them, predictions of a lower score are not looked at
    concepts: Any = MISSING  # ours | paper (its task, where a data set has paper_concepts) | [concept, ...]
    ask: str = MISSING  # present (paper: only what is in the image) | all (also what was looked for and is not there)
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    synonyms: bool = MISSING  # ask for what is there in all the words of the vocabulary too
    images: int | None = MISSING  # images per data set; null: all
    overlays: int = MISSING  # images per data set of which there are pictures
    save_masks: bool = MISSING  # every mask as a PNG file (evaluate.py)
    workers: int = MISSING

    @property
    def detected_from(self) -> float | None:
        """See `ImagePredictor.predict`."""
        return self.instance_score if self.instances else None


@dataclass
class ScanConfig:
    """How a volume is read and shown to the model; null: as its header says."""

    axis: Any = MISSING  # axial | coronal | sagittal (upright), 0 | 1 | 2 (as stored); null: as acquired, or axial
    window: list[float] | None = MISSING  # voxel values shown as black and white
    modality_windows: dict[str, list[float]] = MISSING  # where the header has no window, by modality (DICOM)
    percentiles: list[float] = MISSING  # of all voxels, shown as black and white: where nothing else says it
    series: str | None = MISSING  # key of a DICOM series, where a folder holds several


@dataclass
class VolumeConfig:
    """How slices become masks in three dimensions."""

    mode: str = MISSING  # detector (each slice alone) | tracker (detected, then followed from slice to slice)
    slices_per_pass: int = MISSING
    smoothing_slices: float = MISSING  # standard deviation of the blur from slice to slice; 0: none
    seed_threshold: float | None = MISSING  # connected parts without an instance of this score go; null: all stay
    min_component_mm3: float = MISSING  # smaller connected parts go
    largest_component: bool = MISSING  # only the largest connected part of each concept stays
    nms_iou: float = MISSING  # tracker: of instances of a concept that overlap more the best is followed; 0: all are
    bridge_slices: int = MISSING  # tracker: slices in a row without a detection on which a track is still shown
    tracker: str | None = MISSING  # checkpoint that holds SAM3's tracker; null: the detector's own
    tracker_vision: str = MISSING  # auto | original (its own, exact) | shared (the detector's, once per slice)


@dataclass
class TrainerConfig:
    epochs: int = MISSING
    images_per_process: int = MISSING
    accumulation_steps: int = MISSING
    bf16: bool = MISSING  # autocast on GPUs; no effect on CPU
    exchange: str = MISSING  # float32 | bfloat16: of gradients between processes
    max_steps: int | None = MISSING  # stop after so many optimizer steps
    patience: int | None = MISSING  # stop after so many validations in a row without a better Dice; null: never
    max_skipped_steps: int = MISSING  # steps in a row without a finite loss and gradient before the run stops
    log_every_steps: int = MISSING
    save_every_steps: int | None = MISSING  # states of `last` within an epoch
    keep_states: int = MISSING  # of the newest states, this many stay
    timeout_minutes: float = MISSING  # without a step, before a hanging rank ends the run
    average_decay: float | None = MISSING  # of the averaged weights; null: none


@dataclass
class WandbConfig:
    mode: str = MISSING  # auto | online | offline | off
    project: str = MISSING


@dataclass
class RunConfig:
    """Keys that every script has."""

    name: str = MISSING
    output_root: str = MISSING
    output_dir: str = MISSING
    device: str = MISSING  # auto | cpu | cuda
    seed: int = MISSING
    data: DataConfig = field(default_factory=DataConfig)  # of shared.yaml; not every script reads it


@dataclass
class AskingConfig(RunConfig):
    """Keys of the scripts that ask a trained model."""

    checkpoint: str = MISSING
    image_size: int | None = MISSING  # side of the square model input, px; null: what the checkpoint was trained at
    bf16: bool = MISSING
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)


@dataclass
class TrainConfig(RunConfig):
    datasets: Any = MISSING  # a name or a use (train: the 33 sets of the paper), or a list of them
    model: ModelConfig = field(default_factory=ModelConfig)
    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class EvaluateConfig(AskingConfig):
    split: Any = MISSING  # internal | external | train | val, or a list of data set names
    predictions: str | None = MISSING  # a folder of masks to score instead of a checkpoint, see mask_files.py
    predicted_instances: str = MISSING  # of these masks: components | labels (the values of <concept>/<case>.png)
    prompt: str = MISSING  # text | box | noisy_box | text_box; boxes of the truth tell how much of a score they are
    box_noise: float = MISSING  # standard deviation of each edge of a noisy box, as a fraction of the box's side
    box_noise_max_px: float = MISSING  # no edge moves further
    baseline: str | None = MISSING  # results.json of another checkpoint, shown beside this one
    allow_training_rows: bool = MISSING  # evaluate on rows that the checkpoint was trained on
    volumes: bool = MISSING  # put slices together to volumes and measure these instead (evaluation/volumes.py)
    nsd_mm: list[float] = MISSING  # of volumes: tolerances of the normalised surface Dice
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class ReportConfig(RunConfig):
    results: str | None = MISSING  # folder of a finished evaluation; its report.html is written anew
    run: str | None = MISSING  # or folder of a training run, also of one that goes on
    baseline: str | None = MISSING  # folder of another one on the same queries; null: the one of the evaluation


@dataclass
class PredictConfig(AskingConfig):
    format: str = MISSING  # files | cvpr2025 (.npz cases of the challenge, prediction/challenge.py)
    input: Any = MISSING  # a picture, a folder, a glob pattern, a jobs file (.json), or a list of these
    prompts: Any = MISSING  # a text or a list of texts; null: those of the jobs file
    outputs: list[str] = MISSING  # index | masks | coco | overlays (prediction/outputs.py)
    instances: str = MISSING  # united (one mask per prompt) | apart (one per instance)
    exclusive: Any = MISSING  # all | a list of prompts: those that may not overlap; [] for none
    seg: str = MISSING  # BINARY | LABELMAP: how a DICOM segmentation holds its masks; NIFTI: none
    orientation: str = MISSING  # shown (turned as EXIF says, as viewers do) | stored (as evaluate.py and annotations)
    scan: ScanConfig = field(default_factory=ScanConfig)  # of pictures with more than 8 bits: window, percentiles


@dataclass
class ChallengeConfig(RunConfig):
    predictions: str = MISSING  # folder of .npz files with `segs`
    truth: str = MISSING  # folder of .npz files with `gts`
    cases: str = MISSING  # folder of the .npz files that were the input: prompts and spacing


@dataclass
class DemoConfig(AskingConfig):
    port: int = MISSING
    upload_mb: float = MISSING  # the largest file that is taken
    keep_minutes: float = MISSING  # without a new upload, before a visitor's files and masks are deleted
    pictures_per_pass: int = MISSING  # slices of a volume that the vision encoder sees together
    orientation: str = MISSING  # see PredictConfig
    scan: ScanConfig = field(default_factory=ScanConfig)


@dataclass
class PrepareConfig(RunConfig):
    datasets: Any = MISSING  # a name or a use (train | internal | external: the paper's sets), or a list of them
    skip_broken: bool = MISSING  # leave broken items out and list them, instead of stopping
    workers: int = MISSING  # processes that check files
    pictures: int = MISSING  # images of each set on a sheet with their masks; 0: no sheet
    export: str | None = MISSING  # nnunet: write prepared sets in nnU-Net's layout instead of preparing them
    export_folder: str = MISSING
    export_id: int = MISSING  # nnU-Net's number of the first data set
    export_concepts: list[str] | None = MISSING  # null: all


@dataclass
class GetDataConfig(RunConfig):
    datasets: Any = MISSING  # as above; null: all that have a card
    accept_licence: bool = MISSING  # fetch what is open; each licence is shown before
    json: bool = MISSING  # the table as JSON
    receipts: str = MISSING  # folder of <name>.json: what was fetched from where, and its hash
    keep_archives: bool = MISSING
    attempts: int = MISSING  # per file
    wait_s: float = MISSING  # before the second attempt; doubled before each further one
    timeout_s: float = MISSING  # without a byte


@dataclass
class AuditConfig(RunConfig):
    datasets: Any = MISSING  # prepared (all that have a split file), or as above
    max_distance: int = MISSING  # bits of 256 in which near-duplicates may differ
    workers: int = MISSING  # processes that read images


def register_schemas() -> None:
    """Make the classes known to Hydra, so that configs/*.yaml are checked while they are composed."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="report_schema", node=ReportConfig)
    store.store(name="predict_schema", node=PredictConfig)
    store.store(name="challenge_schema", node=ChallengeConfig)
    store.store(name="demo_schema", node=DemoConfig)
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(name="audit_schema", node=AuditConfig)
    store.store(name="get_data_schema", node=GetDataConfig)
