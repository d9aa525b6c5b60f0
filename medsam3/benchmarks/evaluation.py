"""Costs of an evaluation: where the time per image goes, and the memory that many queries take."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from medsam3.benchmarks.scale import SYNTHETIC, synthetic_corpus
from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import EvaluateConfig, register_schemas
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import asked_images, collected, run_evaluation
from medsam3.evaluation.measurement import write_evaluation
from medsam3.evaluation.stopwatch import Stopwatch
from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3
from medsam3.prediction.image import ImagePredictor
from medsam3.reports.extremes import extreme_images
from medsam3.results.asking import PRESENT
from medsam3.results.findings import Finding, Journal
from medsam3.results.scores import QueryResult, dice_intervals


def evaluate_config(*overrides: str) -> EvaluateConfig:
    """The paper's evaluation with the tiny model, without pictures."""
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        own = ("checkpoint=tiny", "device=cpu", "evaluation.overlays=0")
        return typed(compose("evaluate", [*own, *overrides]), EvaluateConfig)


class _Timed:
    """A detector whose two halves are timed."""

    def __init__(self, detector: TextDetector, clock: Stopwatch) -> None:
        self._detector, self._clock = detector, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._detector, name)
        part = {"encode_images": "encoder", "encode_texts": "encoder", "detect": "decoder"}.get(name)
        return partial(self._call, part, found) if part else found

    def _call(self, part: str, function: Any, *arguments: Any, **options: Any) -> Any:
        with self._clock(part):
            return function(*arguments, **options)


def time_per_image(
    corpus: Corpus, metrics: Sequence[str], workers: int, image_size: int, journal: Path
) -> dict[str, float]:
    """Milliseconds per image of each part of an evaluation with the tiny model, and of all together ("total").

    Args:
        journal: a folder for it.

    "outlines" is what the model waits for them; "rules" is all of the model's part that is neither encoder nor decoder:
    the masks at the image's own size.
    """
    config = evaluate_config(f"evaluation.metrics=[{','.join(metrics)}]", f"evaluation.workers={workers}")
    loaded = load_sam3(config.checkpoint, image_size)
    clock = Stopwatch()
    detector: Any = _Timed(TextDetector(loaded.model), clock)
    predictor = ImagePredictor(detector, loaded.tokenizer, image_size, config.prediction, bf16=False)
    asked = asked_images(corpus, dict.fromkeys(corpus.specs, "train"), config.evaluation)
    clock.restart()
    run_evaluation(ModelAnswers(predictor, corpus), corpus, asked, config.evaluation, Journal(journal), clock=clock)
    parts = clock.parts_ms()
    parts["rules"] = parts.pop("model") - parts["encoder"] - parts["decoder"]
    parts["rest"] += parts["encoder"] + parts["decoder"]  # they were counted twice
    return parts


@dataclass(frozen=True)
class QueryCosts:
    """Of all of an evaluation but reading, model and masks: rows made up, kept, sorted, summed up, written."""

    queries: int
    images: int
    seconds: float
    before_mb: float  # memory before the first one
    peak_mb: float  # the most memory
    journal_mb: float


def query_costs(queries: int, folder: Path) -> QueryCosts:
    """In a process of its own, as a process does not forget its peak."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({queries}, {str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return QueryCosts(**json.loads(done.stdout.splitlines()[-1]))


def main(queries: int, folder: str) -> None:
    """Print the costs of one evaluation as JSON."""
    corpus = synthetic_corpus(queries, Path(folder) / "corpus")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin, before_mb = time.perf_counter(), memory_mb("VmHWM")
    asked = asked_images(corpus, {SYNTHETIC: "train"}, evaluate_config().evaluation)
    images = asked[SYNTHETIC]
    journal = Journal(Path(folder) / "journal")
    for number, rows in enumerate(images):
        journal.add(number, made_up(rows))
    evaluation = collected(journal, images, [SYNTHETIC])
    intervals = dice_intervals(evaluation.results)
    extremes = extreme_images(evaluation, asked)
    write_evaluation(Path(folder), evaluation, synonyms=False)
    assert intervals["top1"][SYNTHETIC].rows == queries and extremes[SYNTHETIC]
    costs = QueryCosts(
        queries=queries,
        images=len(images),
        seconds=time.perf_counter() - begin,
        before_mb=before_mb,
        peak_mb=memory_mb("VmHWM"),
        journal_mb=sum(file.stat().st_size for file in (Path(folder) / "journal").iterdir()) / 1e6,
    )
    print(json.dumps(vars(costs)))


def made_up(rows: ImageRows) -> Finding:
    """Some Dice that follows from the names."""
    results = []
    for concept in rows.present:
        dice = zlib.crc32(f"{rows.item} {concept}".encode()) % 1000 / 999
        result = QueryResult(
            dataset=rows.dataset,
            item=rows.item,
            group=rows.group,
            part=rows.part,
            concept=concept,
            prompt=concept,
            rule="top1",
            kind=PRESENT,
            score=dice,
            presence=dice,
            values={"dice": dice, "iou": dice / (2 - dice)},
            ceiling=1.0,
            truth_px=1000,
            prediction_px=1000,
        )
        results.append(result)
    count = len(results)
    cross_dice = [[float(a == b) for b in range(count)] for a in range(count)]
    return Finding(
        dataset=rows.dataset,
        item=rows.item,
        results=results,
        reworded=[],
        concepts=list(rows.present),
        cross_dice=cross_dice,
        instances=[],
    )


def memory_mb(which: str) -> float:
    """Of this process: VmRSS, what it has; VmHWM, the most it has had."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) / 1024
