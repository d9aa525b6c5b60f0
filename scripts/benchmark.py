"""Time and memory of the training input and of a training step; each command prints a Markdown table.

python scripts/benchmark.py reading --image FILE --mask FILE               an image file and its mask to a sample
python scripts/benchmark.py reading --dataset kvasir_seg --data-root DIR  some images of a data set
python scripts/benchmark.py slices                                       cached slices of the MNI152 template
python scripts/benchmark.py manifest                                     2 million rows: opening, memory of the workers
python scripts/benchmark.py sampling                                     shares of data sets under data.weights
python scripts/benchmark.py plan                                         memory and time of a step, without a GPU
python scripts/benchmark.py step                                         optimizer steps of the full-size model
python scripts/benchmark.py recipe --overrides data.root=DIR             what each lever of the recipe does (hours)
python scripts/benchmark.py evaluate --dataset drive kvasir_seg           where the time of an evaluation goes
python scripts/benchmark.py queries                                      memory of an evaluation of a million queries
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from medsam3.benchmarks import evidence, parts, planning, reading, recipe_page, scale, step
from medsam3.benchmarks.levers import VARIANTS
from medsam3.command_line import explain
from medsam3.messages import one_of
from medsam3.registry.spec import DatasetSpec, load_specs
from medsam3.training.plan import CARDS, TYPICAL_INSTANCES

EVALUATION_PARTS = ("reading", "encoder", "decoder", "rules", "metrics", "outlines", "writing", "rest")


def main() -> None:
    """Measure; an error is one message on stderr and exit status 2."""
    arguments = parse_arguments()
    facts = machine()
    try:
        with tempfile.TemporaryDirectory(prefix="medsam3_benchmark_") as folder:
            table = arguments.measure(arguments, Path(folder))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"{table}\n\n{facts}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    files = commands.add_parser("reading", help="image and mask files to a training sample, beside PIL alone")
    source = files.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, metavar="FILE", help="an image file (with --mask)")
    source.add_argument("--dataset", metavar="NAME", help="a data set (with --data-root)")
    files.add_argument("--mask", type=Path, metavar="FILE")
    files.add_argument(
        "--threshold", type=float, default=127, help="grey of --mask above it is the object (%(default)g)"
    )
    files.add_argument("--megapixels", type=float, nargs=2, default=(1, 2), help="only images of this size (1 2)")
    files.set_defaults(measure=reading_table)

    slices = commands.add_parser("slices", help="slices of cached volumes to a training sample, beside the resize")
    slices.add_argument("--dataset", metavar="NAME", default="mni152", help="%(default)s")
    slices.set_defaults(measure=slices_table)
    for command in (files, slices):
        command.add_argument("--data-root", type=Path, default=Path("data"), help="data.root (%(default)s)")
        command.add_argument("--images", type=int, default=8, help="images of the data set (%(default)s)")
        command.add_argument("--repeats", type=int, default=20, help="of each image (%(default)s)")
        command.add_argument("--image-size", type=int, default=1008, help="side of the sample, px (%(default)s)")

    manifest = commands.add_parser("manifest", help="a synthetic manifest: time to open, memory of the workers")
    manifest.add_argument("--rows", type=int, default=2_000_000, help="(%(default)s)")
    manifest.add_argument("--workers", type=int, default=2, help="data loading processes (%(default)s)")
    manifest.add_argument("--samples", type=int, default=100_000, help="images that they fetch (%(default)s)")
    manifest.set_defaults(measure=manifest_table)

    sampling = commands.add_parser("sampling", help="shares of data sets in an epoch under data.weights")
    sampling.add_argument("--small", type=int, default=23, help="images of RAVIR (%(default)s)")
    sampling.add_argument("--large", type=int, default=33_920, help="images of COVID-QU-Ex (%(default)s)")
    sampling.set_defaults(measure=sampling_table)

    steps = commands.add_parser("step", help="optimizer steps on random weights: images per second, peak memory")
    steps.add_argument("--model", choices=("sam3", "tiny"), default="sam3", help="(%(default)s: the released size)")
    steps.add_argument("--image-size", type=int, default=1008, help="px (%(default)s)")
    steps.add_argument("--steps", type=int, default=10, help="after 3 to warm up (%(default)s)")
    steps.add_argument("overrides", nargs="*", help="of the training configuration, such as experiment=recommended")
    steps.set_defaults(measure=step_table)

    recipe = commands.add_parser(
        "recipe", help="short runs of the tiny model with each lever on and off: docs/recipe.md"
    )
    recipe.add_argument("--csv", type=Path, default=Path("docs/recipe.csv"), help="a row per run (%(default)s)")
    recipe.add_argument("--page", type=Path, default=Path("docs/recipe.md"), help="gets the tables (%(default)s)")
    recipe.add_argument(
        "--start", type=Path, default=Path("runs/recipe_start"), help="what runs start from (%(default)s)"
    )
    recipe.add_argument("--variants", nargs="*", metavar="NAME", default=list(VARIANTS), help="%(default)s")
    recipe.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="0 1 2; none: only write the page")
    recipe.add_argument("--steps", type=int, default=160, help="of a run (%(default)s)")
    recipe.add_argument("--start-steps", type=int, default=800, help="of the start (%(default)s)")
    recipe.add_argument("--image-size", type=int, default=112, help="px (%(default)s)")
    recipe.add_argument("--overrides", nargs="*", default=[], help="where the data lie: data.root=DIR")
    recipe.set_defaults(measure=recipe_tables)
    add_plan(commands)
    add_evaluation(commands)
    return parser.parse_args()


def add_plan(commands: Any) -> None:
    plans = commands.add_parser("plan", help="memory and time of a step on a GPU, computed without one")
    plans.add_argument("--model", choices=("sam3", "tiny"), default="sam3", help="(%(default)s: the released size)")
    plans.add_argument("--card", choices=tuple(CARDS), default="h100", help="%(default)s")
    plans.add_argument("--processes", type=int, default=4, help="of the run (%(default)s)")
    plans.add_argument("--queries", type=int, metavar="N", help="per image (data.max_queries)")
    plans.add_argument("--instances", type=int, metavar="N", help=f"per query ({TYPICAL_INSTANCES})")
    plans.add_argument("overrides", nargs="*", help="of the training configuration, such as hardware=gpu_24gb")
    plans.set_defaults(measure=plan_table)


def add_evaluation(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="time per image of an evaluation with the tiny model, by part")
    evaluate.add_argument("--dataset", metavar="NAME", nargs="+", required=True)
    evaluate.add_argument("--data-root", type=Path, default=Path("data"), help="data.root (%(default)s)")
    evaluate.add_argument("--images", type=int, default=28, help="of each data set (%(default)s)")
    evaluate.add_argument("--image-size", type=int, default=224, help="px (%(default)s)")
    evaluate.add_argument("--workers", type=int, default=1, help="evaluation.workers (%(default)s)")
    evaluate.set_defaults(measure=evaluate_table)

    queries = commands.add_parser("queries", help="rows made up, kept, sorted, summed up and written: peak memory")
    queries.add_argument("--queries", type=int, nargs="+", default=[100_000, 1_000_000], help="(%(default)s)")
    queries.set_defaults(measure=queries_table)


def reading_table(arguments: argparse.Namespace, folder: Path) -> str:
    if arguments.image is not None:
        if arguments.mask is None:
            raise ValueError("--image needs --mask FILE beside it")
        spec, root, sizes = (
            one_pair(arguments.image, arguments.mask, arguments.threshold, folder),
            folder,
            None,
        )
    else:
        spec, root, sizes = load_specs(arguments.dataset)[arguments.dataset], arguments.data_root, arguments.megapixels
    corpus = parts.small_corpus(spec, root, folder, arguments.images, sizes)
    times = reading.image_reading(corpus, arguments.image_size, arguments.repeats)
    rows = [
        ("PIL: decode the image file, resize once", f"{times.baseline:.1f}", "1"),
        ("training sample", f"{times.sample:.1f}", f"**{times.ratio:.2f}** (target: at most 1.5)"),
        *((f"of it: {part}", f"{ms:.1f}", "") for part, ms in times.parts.items()),
        (
            "training sample with augmentation=by_modality (mean)",
            f"{times.augmented:.1f}",
            f"**{1000 / times.augmented:.1f} images/s on a core**, without {1000 / times.sample:.1f}",
        ),
    ]
    return markdown((f"{spec.title}: {times.subject}", "ms", "times PIL's"), rows)


def slices_table(arguments: argparse.Namespace, folder: Path) -> str:
    spec = load_specs(arguments.dataset)[arguments.dataset]
    corpus = parts.small_corpus(spec, arguments.data_root, folder, arguments.images, None)
    times = reading.slice_reading(corpus, arguments.image_size, arguments.repeats)
    rows = [
        ("resize of the slice alone", f"{times.baseline:.1f}"),
        ("training sample", f"{times.sample:.1f}"),
        ("beyond the resize", f"**{times.beyond:.1f}** (target: at most 10)"),
        *((f"of the sample: {part}", f"{ms:.1f}") for part, ms in times.parts.items()),
    ]
    return markdown((f"{spec.title}: {times.subject}", "ms"), rows)


def manifest_table(arguments: argparse.Namespace, folder: Path) -> str:
    costs = scale.manifest_costs(arguments.rows, arguments.samples, arguments.workers, folder)
    rows = [
        ("opened the first time, Arrow copy written", f"{costs.first_s:.2f} s"),
        ("opened again", f"**{costs.second_s:.2f} s** (target: under 2)"),
        ("training part selected, order of an epoch drawn", f"{costs.epoch_s:.2f} s"),
        ("proportional set size added per worker", f"**{costs.worker_mb:.0f} MB** (target: under 100 MB)"),
        ("the same with 2,000 rows", f"{costs.few_rows_worker_mb:.0f} MB"),
    ]
    title = f"{costs.rows:,} rows, {costs.images:,} images, {costs.file_mb:.0f} MB of CSV, {arguments.workers} workers"
    return markdown((title, ""), rows)


def sampling_table(arguments: argparse.Namespace, folder: Path) -> str:
    counts = {"ravir": arguments.small, "covid_qu_ex": arguments.large}
    epoch = sum(counts.values())
    rows = [
        (
            share.weights,
            share.name,
            f"{share.images:,}",
            f"{share.drawn:,}",
            f"{share.drawn / epoch:.2%}",
            f"{share.drawn / share.images:.2f}",
            f"{share.different:,}",
        )
        for share in scale.sampling_shares(counts, folder)
    ]
    header = (
        "data.weights",
        "data set",
        "images",
        "drawn in an epoch",
        "share",
        "times each image",
        "different images",
    )
    return markdown(header, rows)


def step_table(arguments: argparse.Namespace, folder: Path) -> str:
    costs = step.step_costs(arguments.model, arguments.image_size, arguments.steps, arguments.overrides, folder)
    rows = [
        ("images per second", f"**{costs.images_per_s:.2f}**"),
        ("peak memory", f"**{costs.memory_gib:.1f} GiB**"),
        ("parameters", f"{costs.parameters / 1e6:.1f} million"),
        ("images, queries in a step", f"{costs.images}, {costs.queries}"),
    ]
    settings = " ".join(arguments.overrides) or "configs/train.yaml"
    return markdown((f"{arguments.model}, {arguments.image_size} px, on {costs.device}, {settings}", ""), rows)


def recipe_tables(arguments: argparse.Namespace, folder: Path) -> str:
    for name in arguments.variants:
        one_of("--variants", name, VARIANTS)
    table = evidence.Table(arguments.csv)
    if arguments.seeds:
        from medsam3.benchmarks.recipe import Setting, do  # brings transformers with it, so only here

        setting = Setting(tuple(arguments.overrides), arguments.start, arguments.image_size)
        do(table, setting, arguments.start_steps, arguments.steps, arguments.variants, arguments.seeds)
    return recipe_page.write(arguments.page, table)


def plan_table(arguments: argparse.Namespace, folder: Path) -> str:
    plan = planning.planned(
        arguments.model,
        arguments.card,
        arguments.overrides,
        arguments.processes,
        arguments.queries,
        arguments.instances,
    )
    load, settings = plan.load, " ".join(arguments.overrides) or "configs/train.yaml"
    title = f"{settings}: {load.images} x {load.queries} queries x {load.instances} instances, computed"
    return markdown((title, "GiB", "launches", "TFLOP", f"ms on {arguments.card}"), planning.rows(plan, arguments.card))


def evaluate_table(arguments: argparse.Namespace, folder: Path) -> str:
    from medsam3.benchmarks.evaluation import time_per_image  # brings transformers with it, so only here

    rows = []
    for name in arguments.dataset:
        spec = load_specs(name)[name]
        corpus = parts.small_corpus(spec, arguments.data_root, folder / name, arguments.images, None)
        for metrics in (["dice", "iou"], ["dice", "iou", "nsd", "hd95"]):
            journal = folder / name / str(len(metrics))
            found = time_per_image(corpus, metrics, arguments.workers, arguments.image_size, journal)
            cells = [f"{found.get(part, 0.0):.1f}" for part in EVALUATION_PARTS]
            rows.append((f"{spec.title}, {', '.join(metrics)}", *cells, f"**{found['total']:.1f}**"))
    return markdown(("ms per image", *EVALUATION_PARTS, "total"), rows)


def queries_table(arguments: argparse.Namespace, folder: Path) -> str:
    from medsam3.benchmarks.evaluation import query_costs

    found = [query_costs(count, folder / str(count)) for count in arguments.queries]
    rows = [
        (
            f"{costs.queries:,}",
            f"{costs.images:,}",
            f"{costs.seconds:.0f} s",
            f"{costs.journal_mb:.0f} MB",
            f"{costs.before_mb:.0f} MB",
            f"**{costs.peak_mb - costs.before_mb:.0f} MB**",
        )
        for costs in found
    ]
    return markdown(("queries", "images", "time", "journal on disk", "memory before", "added at its peak"), rows)


def machine() -> str:
    """One line: what a figure depends on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} CPU cores{gpu}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def one_pair(image: Path, mask: Path, threshold: float, folder: Path) -> DatasetSpec:
    """A data set of one image file and one mask file; grey above the threshold belongs to the concept.

    Args:
        folder: serves as data.root; gets links to the files.
    """
    for kind, path in (("images", image), ("masks", mask)):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        place = folder / "pair" / kind / f"pair{path.suffix}"
        place.parent.mkdir(parents=True)
        place.symlink_to(path.resolve())
    return DatasetSpec(
        name="pair",
        title="One image",
        modality="endoscopy",
        used_for=("example",),
        reader="image_mask",
        root=("pair",),
        images=(f"images/{{id}}{image.suffix}",),
        masks=f"masks/{{id}}{mask.suffix}",
        concepts={1: "object"},
        instances="components",
        options={"threshold": threshold},
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
