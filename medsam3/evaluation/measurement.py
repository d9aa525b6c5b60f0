"""Measure a checkpoint on a split: what scripts/evaluate.py does, from configuration to the files of the result."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from medsam3 import distributed
from medsam3.config import EvaluateConfig, EvaluationConfig, ForeignConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.manifest import ImageRows, split_file
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.evaluation.mask_files import MaskWriter
from medsam3.evaluation.sources import Source, open_source
from medsam3.evaluation.stopwatch import Stopwatch
from medsam3.files import file_hash, writable_folder, write_lines, write_text
from medsam3.messages import listed
from medsam3.metrics.masks import check_metrics
from medsam3.registry.spec import load_specs
from medsam3.reports.beside import check_truth, side_of
from medsam3.reports.extremes import EXTREMES, extreme_images
from medsam3.reports.instance_tables import instance_table, instances_csv
from medsam3.reports.obedience_tables import obedience_markdown
from medsam3.reports.page import write_report
from medsam3.reports.shown import show_in_wandb
from medsam3.reports.table3 import write_table_3
from medsam3.reports.tables import (
    Baseline,
    prompt_table,
    read_baseline,
    results_csv,
    results_json,
    rule_tables,
    silences,
)
from medsam3.results.asking import check_concepts, check_foreign, queries
from medsam3.results.findings import Evaluation, Journal
from medsam3.results.folder import read_results
from medsam3.results.instance_scores import InstanceScores, InstanceTallies
from medsam3.results.obedience import Obedience, obedience
from medsam3.results.question import Question, Rows, rows_asked
from medsam3.results.scores import DRAWS, dice_intervals
from medsam3.versions import code_version, package_versions

MASK_FOLDER = "masks"
SYNONYMS = "synonyms.csv"
APART = ("answers", "report", "chosen_on", "trained_on")  # of a source, no part of the question
INSTANCES = "instances.csv"


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measure a checkpoint, or masks from files, on a split and write results.csv, results.json, table.md, prompts.md,
    overlays/, report.html and, with evaluation.save_masks, masks/.

    Raises:
        ValueError: unknown split, no prepared data set, a checkpoint that cannot be loaded or that was trained on the
            rows asked for, a baseline that was asked something else, an output folder that cannot be written to.
    """
    device = distributed.select_device(config.device)
    with distributed.process_group(device):
        check_metrics(config.evaluation.metrics)
        folder = writable_folder(config.output_dir, "output_dir", "output_root")
        baseline = read_baseline(Path(config.baseline)) if config.baseline else None
        beside = baseline.path.with_name("results.csv") if baseline else None
        before = side_of(read_results(beside)) if beside and beside.is_file() else None
        names, missing = prepared_sets(config)
        corpus = open_corpus(config.data, names)
        check_foreign(corpus, config.evaluation.foreign)
        check_concepts(corpus.specs.values(), config.evaluation)
        parts = parts_asked(config, corpus)
        asked = asked_images(corpus, parts, config.evaluation)
        source = open_source(config, corpus, parts, asked, device)
        question = question_of(config, source, rows_asked(corpus, parts, asked, config.evaluation))
        if baseline:
            baseline.differences(question)  # an error now rather than after the work
        say = print if distributed.is_main() else lambda *_: None
        for line in source.report:
            say(line)
        say(f"data     {corpus.describe()}")
        for name in missing:
            say(f"missing  {name}: not prepared, left out (python scripts/prepare_data.py datasets={name})")
        journal = Journal(folder / "unfinished", f"{question.line()} save_masks={config.evaluation.save_masks}")
        if journal.finished:
            say(f"resumes  {len(journal.finished)} images are done already")
        elif distributed.is_main():
            shutil.rmtree(folder / MASK_FOLDER, ignore_errors=True)  # of an earlier evaluation
        distributed.barrier()
        writer = None
        if config.evaluation.save_masks:
            writer = MaskWriter(folder / MASK_FOLDER, corpus, parts, config.prediction.resolve_overlaps)
        clock = Stopwatch()
        evaluation = run_evaluation(source.answers, corpus, asked, config.evaluation, journal, writer, clock)
        say(f"time     {clock.describe()}")
        if writer and distributed.is_main():
            for line in writer.join(queries(corpus, asked, config.evaluation)):
                say(f"masks    {line}")
        if config.evaluation.overlays:
            _add_extremes(evaluation, config.evaluation, source, corpus, asked, folder)
        if distributed.is_main():
            if baseline and before:
                check_truth(evaluation.results, before, baseline.path)
            words = _write(folder, config, corpus, source, question, baseline, evaluation)
        journal.discard()
        if distributed.is_main():
            say(f"report   {write_report(folder)}")
            show_in_wandb(config, folder, evaluation, words)
        return evaluation


def _add_extremes(
    evaluation: Evaluation,
    config: EvaluationConfig,
    source: Source,
    corpus: Corpus,
    asked: dict[str, list[ImageRows]],
    folder: Path,
) -> None:
    """Ask some images once more, for their pictures: nobody knew before which they would be."""
    none = ForeignConfig(hard=0, easy=0, seed=0)
    pictured = replace(config, overlays=len(EXTREMES), foreign=none, synonyms=False, instances=False)
    again = Journal(folder / "unfinished_pictures")
    found = run_evaluation(source.answers, corpus, extreme_images(evaluation, asked), pictured, again)
    evaluation.overlays |= found.overlays
    again.discard()


def _write(
    folder: Path,
    config: EvaluateConfig,
    corpus: Corpus,
    source: Source,
    question: Question,
    baseline: Baseline | None,
    evaluation: Evaluation,
) -> Obedience:
    """Everything but the report; what of the table the console shows too."""
    beside = os.path.relpath(config.baseline, folder) if config.baseline else None
    titles = {name: spec.title for name, spec in corpus.specs.items()}
    table = rule_tables(
        evaluation.scores, titles, baseline.scores if baseline else None, dice_intervals(evaluation.results)
    )
    table += "".join(f"\n{line}\n" for line in silences(evaluation.results, vars(config.prediction)))
    single = _single(evaluation, corpus) if config.evaluation.instances else {}
    if single:
        table += f"\n{instance_table(single, titles, baseline.instances if baseline else {})}"
        write_lines(folder / INSTANCES, instances_csv(evaluation.findings))
    else:
        (folder / INSTANCES).unlink(missing_ok=True)
    if chosen := source.chosen_on:
        table += f"\nChosen on these rows: {listed(chosen)}. The checkpoint is the best on them of several; "
        table += "data.split.test_fraction, in training, gives a part that only reports.\n"
    for name, reason in source.trained_on.items():
        table += f"\nTRAINED on rows of {name}: {reason} (allow_training_rows=true). Not to be quoted.\n"
    if differences := baseline.differences(question) if baseline else []:
        table += "\nAsked differently (baseline -> ours):\n" + "".join(f"- {line}\n" for line in differences)
    write_text(folder / "table.md", table)
    words = obedience(evaluation.results, evaluation.reworded)
    write_text(folder / "refusals.md", obedience_markdown(words))
    write_evaluation(folder, evaluation, config.evaluation.synonyms)
    files = {name: file_hash(folder / name) for name in ("results.csv", *[INSTANCES] * bool(single))}
    content = results_json(config.split, question, evaluation.scores, beside, words, single, source.chosen_on, files)
    write_text(folder / "results.json", content)
    write_table_3(folder, corpus, question, evaluation, baseline)
    print(f"\n{table}\nresults.csv, results.json, table.md, refusals.md and overlays/ lie in {folder}")
    return words


def question_of(config: EvaluateConfig, source: Source, rows: dict[str, Rows]) -> Question:
    facts = {name: value for name, value in vars(source).items() if name not in APART}
    return Question(
        **facts,
        prompts=config.data.prompts,
        concepts=config.evaluation.concepts,
        ask=config.evaluation.ask,
        foreign=config.evaluation.foreign,
        synonyms=config.evaluation.synonyms,
        metrics=config.evaluation.metrics,
        instances=_instances(config),
        seed=config.seed,
        training_rows_allowed=config.allow_training_rows,
        code=code_version(),
        versions=package_versions(),
        rows=rows,
    )


def _single(evaluation: Evaluation, corpus: Corpus) -> dict[str, InstanceScores]:
    """With intervals; the same numbers as `evaluation.instances`."""
    tallies = InstanceTallies()
    for finding in evaluation.findings:
        for record in finding.instances:
            tallies.add(record)
    kinds = {
        name: ", ".join(dict.fromkeys(spec.instances_of(concept) for concept in spec.concept_names))
        for name, spec in corpus.specs.items()
    }
    return tallies.scores(DRAWS, kinds)


def _instances(config: EvaluateConfig) -> str | None:
    if not config.evaluation.instances:
        return None
    if config.predictions is not None:
        return f"{config.predicted_instances} of the files"
    return f"predictions of a score of {config.evaluation.instance_score} or more"


def write_evaluation(folder: Path, evaluation: Evaluation, synonyms: bool) -> None:
    """Write results.csv, with `synonyms` synonyms.csv, prompts.md and overlays/*.png; those of before are removed."""
    write_lines(folder / "results.csv", results_csv(evaluation.results))
    (folder / SYNONYMS).unlink(missing_ok=True)
    if synonyms and any(True for _ in evaluation.reworded):
        write_lines(folder / SYNONYMS, results_csv(evaluation.reworded))
    (folder / "prompts.md").unlink(missing_ok=True)
    if evaluation.prompt_dice:  # a data set of several concepts
        write_text(folder / "prompts.md", prompt_table(evaluation.prompt_dice))
    pictures = folder / "overlays"
    pictures.mkdir(exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    for name, picture in evaluation.overlays.items():
        picture.save(pictures / name)


def parts_asked(config: EvaluateConfig, corpus: Corpus) -> dict[str, str]:
    """The part to evaluate of each data set: the one that `split` names, else the one that reports."""
    named = config.split if isinstance(config.split, str) else config.split[0] if len(config.split) == 1 else ""
    parts = {name: named if named in ("train", "val") else corpus.part_to_report(name) for name in corpus.specs}
    without = [name for name, part in parts.items() if part != "test"]
    if named == "test" and without:
        raise ValueError(
            f"split=test: no test part in {listed(without)} (data.split.test_fraction={corpus.test_fraction}); use the "
            "fraction that the checkpoint was trained with"
        )
    return parts


def prepared_sets(config: EvaluateConfig) -> tuple[list[str], list[str]]:
    """The data sets of a split that are prepared, and those that are not."""
    use = {"train": "train", "val": "train", "test": "train", "internal": "internal", "external": "external"}
    named = [config.split] if isinstance(config.split, str) else list(config.split)
    specs = load_specs(use[named[0]]) if len(named) == 1 and named[0] in use else load_specs(named)
    prepared = [name for name in specs if split_file(config.data.splits, name).exists()]
    if not prepared:
        raise ValueError(
            f"split={config.split}: none of its data sets is prepared in data.splits={config.data.splits}; "
            f"run python scripts/prepare_data.py datasets={named[0]}"
        )
    return prepared, [name for name in specs if name not in prepared]
