"""The levers of the recipe: what each is, why it is there, and the two runs whose difference tells what it does."""

from __future__ import annotations

from dataclasses import dataclass

CORPUS_STEPS = 163_540  # one image on each of 4 GPUs, 10 epochs of 65,413
TARGETS = "targets"  # in place of runs: what the resize of masks loses
TARGET_PX = 1008
REGULARISATION = ("stochastic_depth", "attention_dropout", "feed_forward_dropout")
PAPER_SCHEDULE = {"warmup": 100, "timescale": 10, "cooldown": 50}


@dataclass(frozen=True)
class Variant:
    """The recipe with these overrides, in so many of its steps."""

    overrides: tuple[str, ...] = ()
    steps: float = 1.0


# In the order of the work. The first two, on which the rest hangs, are done for all seeds before the others begin.
VARIANTS: dict[str, Variant] = {
    "recipe": Variant(),
    "no_negatives": Variant(("data.absent_concepts=0", "data.hard_negatives=0")),
    "own_negatives": Variant(("data.own_negatives=0.5",)),
    "paper_schedule": Variant(tuple(f"optim.schedule.{k}={v / CORPUS_STEPS}" for k, v in PAPER_SCHEDULE.items())),
    "no_augmentation": Variant(("augmentation=none",)),
    "no_hard_negatives": Variant(("data.hard_negatives=0",)),
    "regularisation": Variant(tuple(f"model.regularisation.{key}=0.1" for key in REGULARISATION)),
    "no_synonyms": Variant(("data.synonyms=0",)),
    "large_steps": Variant(("trainer.images_per_process=8",), steps=0.25),
    "large_steps_with_rule": Variant(("trainer.images_per_process=8", "optim.reference_batch=2"), steps=0.25),
}


@dataclass(frozen=True)
class Lever:
    name: str
    key: str  # of the configuration
    what: str
    why: str
    on: str = ""  # a variant, and which of its weights: last | average; TARGETS; none: see `effect`
    off: str = ""
    on_weights: str = "last"
    effect: str = ""  # of what these runs cannot tell
    cost: str = ""  # where it is not that of a step


LEVERS = (
    Lever(
        "negatives",
        "data.absent_concepts",
        "two of the prompts of an image name what is not in it",
        "the paper asks for what is there alone; SAM3 fine-tuned so answers every word (Sompote/SAM3_LoRA, issue 22)",
        on="recipe",
        off="no_negatives",
    ),
    Lever(
        "hard negatives",
        "data.hard_negatives",
        "one of the two at least is a look-alike by data_manifests/scenes.yaml",
        "SAM3's paper, 0, 5, 30 of them per image: cgF1 31.8, 44.8, 49.2",
        on="recipe",
        off="no_hard_negatives",
    ),
    Lever(
        "own negatives",
        "data.own_negatives",
        "chance that an absent concept beyond the hard ones is one that other images of the run show",
        "their words are asked as present far more often: a polyp is then found in a brain",
        on="own_negatives",
        off="recipe",
    ),
    Lever(
        "schedule",
        "optim.schedule.timescale",
        "lengths are fractions of the run: 56 % of the written rates on average",
        "timescale 10 (the authors' later configuration) leaves 1.6 % on average over the corpus, and in these runs",
        on="recipe",
        off="paper_schedule",
    ),
    Lever(
        "augmentation",
        "data.augmentation.chance",
        "by modality: size and place, crop, mirror, turn, brightness, contrast, gamma, blur, noise, stain",
        "resize with padding is Meta's and in the authors' later configuration, the rest nnU-Net's; the paper has none",
        on="recipe",
        off="no_augmentation",
    ),
    Lever(
        "synonyms",
        "data.synonyms",
        "chance that a present concept is asked for by a synonym of data_manifests/vocabulary.yaml",
        "users do not write canonical names; these runs ask for canonical names",
        on="recipe",
        off="no_synonyms",
    ),
    Lever(
        "averaged weights",
        "trainer.average_decay",
        "a moving average of the weights, validated beside them; `best` is the better of both",
        "Polyak and Juditsky 1992; timm. Here: the average against the last weights of the same runs",
        on="recipe",
        off="recipe",
        on_weights="average",
        cost="3.4 GB of memory, a second validation",
    ),
    Lever(
        "regularisation",
        "model.regularisation.stochastic_depth",
        "stochastic depth, attention and feed-forward dropout, 0.1 each",
        "Meta's training has them, transformers' model not",
        on="regularisation",
        off="recipe",
    ),
    Lever(
        "rates follow the batch",
        "optim.reference_batch",
        "rates times the root of the images of a step",
        "Malladi et al. 2022, for Adam. Here: 8 images a step, a quarter of the steps, rates x 2 against x 1",
        on="large_steps_with_rule",
        off="large_steps",
    ),
    Lever(
        "targets by area",
        "",
        "a pixel of the target is set where at least half of it is covered",
        f"Meta's training. Here: targets of {TARGET_PX} px resized back, against those by the nearest pixel",
        on=TARGETS,
        cost="included in the loader's figures (docs/benchmarks.md)",
    ),
    Lever(
        "cap on repeats",
        "data.max_repeats",
        "an image comes at most so many times in an epoch",
        "roots of sizes alone show UroCell's four images 31 times",
        effect="not measured: it matters where sets of 4 and 30,000 images meet",
        cost="none",
    ),
    Lever(
        "crops",
        "data.max_targets",
        "images with more than 200 instances of a concept are cropped to fewer",
        "the model has 200 answers; Meta drops such prompts",
        effect="not measured: of the sets at hand only three images of MoNuSeg have so many",
        cost="less: smaller pictures, fewer masks",
    ),
)
