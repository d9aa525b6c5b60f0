"""Measure a checkpoint on volumes: what scripts/evaluate.py does with volumes=true, from configuration to files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain

from medsam3 import distributed
from medsam3.config import EvaluateConfig
from medsam3.data.corpus import open_corpus
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.measurement import parts_asked, prepared_sets, question_of
from medsam3.evaluation.sources import Source, open_source
from medsam3.evaluation.volume_tables import volumes_csv, volumes_json, volumes_markdown
from medsam3.evaluation.volumes import VolumeFinding, VolumeResult, find_volumes, measure_volumes
from medsam3.files import writable_folder, write_text
from medsam3.messages import listed
from medsam3.metrics.masks import check_metrics
from medsam3.prediction.volume_predictor import drift_words, open_volume_predictor
from medsam3.reports.page import write_report
from medsam3.reports.volume_report import OVERLAYS
from medsam3.results.asking import check_concepts
from medsam3.results.findings import Journal
from medsam3.results.question import rows_asked


def evaluate_volumes(config: EvaluateConfig) -> list[VolumeResult]:
    """Measure a checkpoint on the volumes of a split and write results_volumes.csv, volumes.md, results_volumes.json,
    overlays_volumes/ and report.html.

    Of what evaluation.* asks, words that a picture cannot show and synonyms are left to the evaluation of slices.

    Raises:
        ValueError: as `measurement.evaluate`; also a setting that volumes do not have, no volumes, and what
            `open_volume_predictor` and `measure_volumes` raise.
    """
    _check(config)
    alone = dataclasses.replace(config.evaluation.foreign, hard=0, easy=0)  # foreign words and synonyms: of pictures
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, foreign=alone, synonyms=False)
    )
    device = distributed.select_device(config.device)
    with distributed.process_group(device):
        check_metrics(config.evaluation.metrics)
        folder = writable_folder(config.output_dir, "output_dir", "output_root")
        names, missing = prepared_sets(config)
        corpus = open_corpus(config.data, names)
        check_concepts(corpus.specs.values(), config.evaluation)
        parts = parts_asked(config, corpus)
        found, left_out = find_volumes(corpus, parts, config.evaluation)
        parts = {name: part for name, part in parts.items() if name in found}
        asked = {name: [rows for volume in own for rows in volume.images] for name, own in found.items()}
        source = open_source(config, corpus, parts, asked, device)
        assert isinstance(source.answers, ModelAnswers)
        volumes = open_volume_predictor(source.answers.predictor, config.volume, config.checkpoint)
        say = print if distributed.is_main() else lambda *_: None
        for line in [*source.report, *(f"remark   {remark}" for remark in volumes.remarks)]:
            say(line)
        say(f"data     {corpus.describe()}; {sum(map(len, found.values()))} volumes of several slices")
        left_out += [f"{name}: not prepared (python scripts/prepare_data.py datasets={name})" for name in missing]
        if config.prediction.rules[0] == "top1" and config.prediction.score_threshold == 0:
            say(
                "WARNING  prediction.score_threshold=0: every slice gets a mask of every concept, also beyond its "
                "ends; evaluation=recommended has a threshold"
            )
        facts = {"volume": dataclasses.asdict(config.volume), "nsd_mm": config.nsd_mm} | volumes.facts
        question = dataclasses.asdict(question_of(config, source, rows_asked(corpus, parts, asked, config.evaluation)))
        journal = Journal(folder / "unfinished_volumes", json.dumps(question | facts), VolumeFinding.from_json)
        if journal.finished:
            say(f"resumes  {len(journal.finished)} volumes are done already")
        elif distributed.is_main():
            shutil.rmtree(folder / OVERLAYS, ignore_errors=True)  # of an earlier evaluation
        distributed.barrier()
        metrics, pictures = config.evaluation.metrics, (folder / OVERLAYS, config.evaluation.overlays)
        results, drifts = measure_volumes(corpus, found, volumes, metrics, config.nsd_mm, journal, *pictures)
        if distributed.is_main():
            table = volumes_markdown(results, list(chain(*found.values())), left_out)
            table += _notes(source, volumes.remarks, drifts)
            answer = volumes_json(question | facts, results, drifts)
            write_text(folder / "results_volumes.csv", volumes_csv(results))
            write_text(folder / "results_volumes.json", answer)
            write_text(folder / "volumes.md", table)
            say(f"\n{table}\nresults_volumes.csv, results_volumes.json and volumes.md lie in {folder}")
        journal.discard()
        if distributed.is_main():
            say(f"report   {write_report(folder)}")
        return results


def _notes(source: Source, remarks: Sequence[str], drifts: Mapping[str, Sequence[float]]) -> str:
    """Lines of volumes.md: on what the checkpoint was chosen and trained, what its tracker is, how far it drifted."""
    lines = [f"Chosen on these slices: {listed(source.chosen_on)}"] if source.chosen_on else []
    lines += [f"TRAINED on rows of {name}: {why}" for name, why in source.trained_on.items()]
    lines += [*remarks, *(f"{name}: {drift_words(drift)}" for name, drift in drifts.items())]
    return "".join(f"- {line}.\n" for line in lines)


def _check(config: EvaluateConfig) -> None:
    """Raises a ValueError for what an evaluation of volumes does not have."""
    for key, value, only in (
        ("predictions", config.predictions, None),
        ("prompt", config.prompt, "text"),
        ("baseline", config.baseline, None),
        ("wandb.mode", config.wandb.mode, "off"),
        ("evaluation.save_masks", config.evaluation.save_masks, False),
    ):
        if value != only:
            raise ValueError(f"volumes=true: {key}={value}: is for slices; leave it out")
    if not config.nsd_mm or len(set(config.nsd_mm)) < len(config.nsd_mm):
        raise ValueError(f"nsd_mm={config.nsd_mm}: must name one tolerance or several, each once")
