"""Time and memory of the training input and of a training step; each command prints a Markdown table;
--record FILE appends it, with hardware and versions.

python scripts/benchmark.py loader                                       files to samples: cached slices of the template
python scripts/benchmark.py loader --dataset kvasir_seg --data-root DIR   some images of a data set
python scripts/benchmark.py loader --image FILE --mask FILE               an image file and its mask
python scripts/benchmark.py manifest                                     2 million rows: opening, memory of the workers
python scripts/benchmark.py sampling                                     shares of data sets under data.weights
python scripts/benchmark.py plan                                         memory and time of a step, without a GPU
python scripts/benchmark.py step                                         the same measured on a GPU, both printed
python scripts/benchmark.py loss                                         matching and loss alone
python scripts/benchmark.py concepts                                     ten queries of one image, or of ten images
python scripts/benchmark.py kills                                        killed runs beside one that is not (long)
python scripts/benchmark.py recipe --overrides data.root=DIR             what each lever of the recipe does (hours)
python scripts/benchmark.py evaluate --dataset drive kvasir_seg           where the time of an evaluation goes
python scripts/benchmark.py queries                                      memory of an evaluation of a million queries
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from medsam3.benchmarks import evidence, loader, parts, planning, recipe_page, scale
from medsam3.benchmarks.levers import VARIANTS
from medsam3.command_line import explain
from medsam3.distributed import select_device
from medsam3.messages import one_of
from medsam3.registry.spec import load_specs
from medsam3.training.plan import CARDS, TYPICAL_INSTANCES
from medsam3.versions import code_version

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
    if arguments.record is not None:
        with arguments.record.open("a", encoding="utf-8") as file:
            file.write(f"\n## {datetime.date.today()}: `{' '.join(sys.argv[1:])}`\n\n{table}\n\n{facts}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    add_loader(commands)
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
    add_loss(commands)
    add_concepts(commands)
    add_kills(commands)
    add_evaluation(commands)
    for command in commands.choices.values():
        command.add_argument("--record", type=Path, metavar="FILE", help="append the table, as to docs/benchmarks.md")
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


def add_loader(commands: Any) -> None:
    command = commands.add_parser("loader", help="from files, or cached slices, to a sample: images/s on a core, bytes")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--image", type=Path, metavar="FILE", help="an image file (with --mask)")
    source.add_argument("--dataset", metavar="NAME", default="mni152", help="a data set (%(default)s)")
    command.add_argument("--mask", type=Path, metavar="FILE")
    command.add_argument("--threshold", type=float, default=127, help="grey of --mask above it counts (%(default)g)")
    command.add_argument("--megapixels", type=float, nargs=2, help="only images of this size, as 1 2")
    command.add_argument("--data-root", type=Path, default=Path("data"), help="data.root (%(default)s)")
    command.add_argument("--images", type=int, default=8, help="images of the data set (%(default)s)")
    command.add_argument("--repeats", type=int, default=20, help="of each image (%(default)s)")
    command.add_argument("--image-size", type=int, default=1008, help="side of the sample, px (%(default)s)")
    command.set_defaults(measure=loader_table)


def add_loss(commands: Any) -> None:
    losses = commands.add_parser("loss", help="matching and loss, forward and backward, of made-up predictions")
    losses.add_argument("--cases", nargs="+", default=["1x1", "8x20", "8x300"], help="queries x targets (%(default)s)")
    losses.add_argument("--variants", nargs="+", default=["box_only", "paper"], help="of loss.variant (%(default)s)")
    losses.add_argument("--image-size", type=int, default=1008, help="px (%(default)s)")
    losses.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    losses.add_argument("--against", type=Path, metavar="DIR", help="a checkout of another version, for comparison")
    losses.add_argument("--device", default="auto", help="auto | cpu | cuda")
    losses.set_defaults(measure=loss_table)


def add_concepts(commands: Any) -> None:
    concepts = commands.add_parser("concepts", help="one image with many queries against as many images, on the CPU")
    concepts.add_argument("--model", choices=("sam3", "tiny"), default="tiny", help="(%(default)s)")
    concepts.add_argument("--image-size", type=int, default=224, help="px (%(default)s)")
    concepts.add_argument("--queries", type=int, default=10, help="(%(default)s)")
    concepts.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    concepts.set_defaults(measure=concepts_table)


def add_kills(commands: Any) -> None:
    kills = commands.add_parser("kills", help="runs killed at random and within writes, beside an unbroken one")
    kills.add_argument("--times", type=int, default=10, help="of each kind (%(default)s)")
    kills.add_argument("--kinds", nargs="*", help="SIGKILL, SIGTERM, or what is written (all)")
    kills.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    kills.add_argument("--overrides", nargs="*", default=[], help="of the training configuration: data.workers=2")
    kills.set_defaults(measure=kills_table)


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


def loader_table(arguments: argparse.Namespace, folder: Path) -> str:
    if arguments.image is not None:
        if arguments.mask is None:
            raise ValueError("--image needs --mask FILE beside it")
        spec, root = parts.one_pair(arguments.image, arguments.mask, arguments.threshold, folder), folder
    else:
        spec, root = load_specs(arguments.dataset)[arguments.dataset], arguments.data_root
    sizes = arguments.megapixels if arguments.image is None else None
    corpus = parts.small_corpus(spec, root, folder, arguments.images, sizes)
    times = loader.loader_times(corpus, arguments.image_size, arguments.repeats)
    beyond = f"{times.beyond:.1f} ms beyond it (target: at most 10)"
    ratio = f"{beyond}" if times.slices else f"**{times.ratio:.2f}** times as long (target: at most 1.5)"
    alone = "resize of the slice alone" if times.slices else "PIL: decode the image file, resize once"
    rows = [
        (alone, f"{times.baseline:.1f}", ""),
        ("training sample", f"{times.sample:.1f}", f"{ratio}; **{1000 / times.sample:.1f} images/s on a core**"),
        *((f"of it: {part}", f"{ms:.1f}", "") for part, ms in times.parts.items()),
        ("with augmentation=by_modality (mean)", f"{times.augmented:.1f}", f"{1000 / times.augmented:.1f} images/s"),
        ("bytes of a sample", "", f"**{times.sample_mb:.2f} MB** (target: at most 5)"),
    ]
    return markdown((f"{spec.title}: {times.subject}", "ms", ""), rows)


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
    from medsam3.benchmarks.step import step_costs  # brings transformers with it, so only here

    costs = step_costs(arguments.model, arguments.image_size, arguments.steps, arguments.overrides, folder)
    plan, card = costs.plan, CARDS[costs.card]
    planned_s = plan.load.images / plan.images_per_s
    reached = f"{plan.flops / costs.seconds / card.bf16_flops:.0%}" if costs.kernels else ""
    memory = "**{:.1f}** {}".format(costs.memory_gib, "" if costs.kernels else "(all of the process)")
    rows = [
        ("images per second", f"**{costs.images / costs.seconds:.2f}**", f"{plan.images_per_s:.2f}"),
        ("ms of a step", f"{1e3 * costs.seconds:.0f}", f"{1e3 * planned_s:.0f}"),
        ("peak memory, GiB", memory, f"{plan.gib:.1f}"),
        ("kernels of a step", f"{costs.kernels:,}" if costs.kernels else "not counted", f"{plan.launches:,}"),
        ("share of the card's bf16 rate", reached, f"{plan.flops / planned_s / card.bf16_flops:.0%}"),
        ("parameters", f"{costs.parameters / 1e6:.1f} million", ""),
        ("images, queries in a step", f"{costs.images}, {costs.queries}", ""),
    ]
    settings = " ".join(arguments.overrides) or "configs/train.yaml"
    title = f"{arguments.model}, {arguments.image_size} px, {settings}"
    return markdown((title, f"measured on {costs.device}", f"planned for {costs.card}"), rows)


def loss_table(arguments: argparse.Namespace, folder: Path) -> str:
    from medsam3.benchmarks.loss import loss_times

    rows = []
    torch.set_num_threads(1)
    device = select_device(arguments.device)
    for variant in arguments.variants:
        for case in arguments.cases:
            queries, targets = map(int, case.split("x"))
            size, repeats, against = arguments.image_size, arguments.repeats, arguments.against
            found = loss_times(queries, targets, variant, size, repeats, device, against)
            row = [f"{variant}, {case}", f"**{found.now:.1f}**"]
            if found.other is not None:
                row += [f"{found.other:.1f}", f"{found.now / found.other:.2f}"]
                row += [f"{found.total:.1g}", f"{found.gradient:.1g}"]
            rows.append(row)
    columns = ["ms", "ms there", "ratio", "total differs by", "gradients by"][: len(rows[0]) - 1]
    return markdown((f"{arguments.image_size} px, {device.type}: queries x targets of each", *columns), rows)


def concepts_table(arguments: argparse.Namespace, folder: Path) -> str:
    from medsam3.benchmarks.concepts import concept_times  # brings transformers with it, so only here

    queries = arguments.queries
    one, many = concept_times(arguments.model, arguments.image_size, queries, arguments.repeats)
    ratio = median(slow / fast for fast, slow in zip(one, many, strict=True))
    rows = [(f"{median(one):.0f}", f"{median(many):.0f}", f"**{ratio:.2f}**")]
    title = f"{arguments.model}, {arguments.image_size} px, ms of CPU: one image with {queries} queries"
    return markdown((title, f"{queries} images with one", "times as long"), rows)


def kills_table(arguments: argparse.Namespace, folder: Path) -> str:
    from medsam3.benchmarks.kills import SIGNALS, WRITES, Series

    kinds = arguments.kinds or (*SIGNALS, *WRITES)
    for kind in kinds:
        one_of("--kinds", kind, (*SIGNALS, *WRITES))
    series = Series(folder, arguments.overrides, arguments.seed, lambda text: print(text, file=sys.stderr, flush=True))
    rows = []
    for kind in kinds:
        found = series.kill(kind, arguments.times)
        ends = ", ".join(f"{count} {end}" for end, count in found.ends.items())
        rows.append((kind, f"{found.kills}", f"{found.runs}", ends, f"**{len(found.different)}**"))
    return markdown(("killed at, or while writing", "kills", "runs", "ends", "differences"), rows)


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
    anew, plan = planning.planned(
        arguments.model,
        arguments.card,
        arguments.overrides,
        arguments.processes,
        arguments.queries,
        arguments.instances,
    )
    load, settings = plan.load, " ".join(arguments.overrides) or "configs/train.yaml"
    title = f"{settings}: {load.images} x {load.queries} queries x {load.instances} instances, computed; anew: {anew}"
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
        f"transformers {version('transformers')}, code {code_version()}, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
