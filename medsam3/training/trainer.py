"""The training run, from configuration to checkpoints: `train` sets up, `_run_epochs` is the loop.

Every rank runs the same code on its own images; the gradient is the mean over ranks (paper, section 4.2).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn, cast

import torch
from tqdm import tqdm
from transformers import Sam3Model

from medsam3 import distributed
from medsam3.config import TrainConfig
from medsam3.data.batch import Batch, one_ahead
from medsam3.data.corpus import open_corpus
from medsam3.data.prompts import KINDS
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.files import clear_leftovers, folder_lock, needs_room, writable_folder
from medsam3.metrics.masks import METRICS, check_metrics
from medsam3.model.detector import TextDetector
from medsam3.model.load import LoadedModel, load_sam3
from medsam3.prediction.image import ImagePredictor
from medsam3.results.asking import check_foreign
from medsam3.results.findings import Evaluation, Journal
from medsam3.results.instance_scores import scalars
from medsam3.results.obedience import refusal_means
from medsam3.results.scores import mean_score
from medsam3.training.log import CASES
from medsam3.training.plan import REMEDIES
from medsam3.training.record import write_best
from medsam3.training.run import Run, set_up
from medsam3.training.step import optimizer_step
from medsam3.training.stopping import exit_status

READ_BACK = 2e-3  # of Dice: what compiled and plain code may differ by


def train(config: TrainConfig) -> float:
    """Train, validate after every epoch, keep `best` and `last`; go on where an interrupted run of the folder stopped.

    A signal to stop (see stopping.py) ends the process after the step, with all saved: SystemExit.

    Returns:
        The best mean validation Dice, 0..1.

    Raises:
        ValueError: a setting, a file, or too many steps without a finite loss and gradient; the message names it.
        OSError: the disk is full, the run folder gone, or a data loading process was killed.
    """
    device = distributed.select_device(config.device)
    with distributed.process_group(device, config.trainer.timeout_minutes):
        folder = writable_folder(config.output_dir, "output_dir", "output_root")
        with distributed.on_main(folder_lock(folder)):
            if distributed.is_main():
                clear_leftovers(folder)
                clear_leftovers(folder / "last")
            check_metrics(config.evaluation.metrics)
            corpus = open_corpus(config.data, config.datasets)
            corpus.require(("train", "val"))
            check_foreign(corpus, config.evaluation.foreign)
            run = set_up(config, corpus, device)
            try:
                with run.stop.listening(), run.log.failures(run.progress):
                    _run_epochs(run)
                    run.writer.wait()
            except torch.OutOfMemoryError as error:
                where = f"at step {run.progress.step + 1} ({str(error).splitlines()[0]})"
                raise ValueError(f"the memory of the GPU is full {where}: {REMEDIES}") from error
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise _killed_loader(error, config) from error
            finally:
                run.writer.close()
                run.log.close()
            return run.progress.best_dice


def _killed_loader(error: RuntimeError, config: TrainConfig) -> OSError:
    shared = Path("/dev/shm")
    free = f" ({shutil.disk_usage(shared).free / 1e9:.2g} GB are free)" if shared.is_dir() else ""
    return OSError(
        f"a data loading process was killed ({str(error).splitlines()[0]}). Likely cause: the machine ran out of "
        f"memory, or of {shared}{free}. Lower data.workers={config.data.workers} and run the same command again"
    )


def _run_epochs(run: Run) -> None:
    progress, watch = run.progress, distributed.Watch(run.config.trainer.timeout_minutes)
    bar = tqdm(
        total=run.total_steps, initial=progress.step, unit="step", disable=not distributed.is_main(), mininterval=2
    )
    run.sampler.set_position(progress.epoch, progress.images)
    batches = one_ahead(distributed.loaded(run.loader), run.device)
    with bar, closing(batches):  # an error's line then begins below the bar
        while (progress.step < run.total_steps or not progress.validated) and not _patience_ends(run):
            _run_epoch(run, batches, bar, watch)
            save(run)  # a validation takes long
            watch.doing("validates", watched=False)
            with _nothing_to_lose(run), run.meter.paused():
                _log_asked(run)
                validate(run)
            progress.validated = True
            if progress.images >= run.sampler.images:
                progress.epoch += 1
                progress.images = 0
                run.meter.asked.clear()
            save(run)
        if not run.log.ends_with("check/best_dice"):
            with _nothing_to_lose(run):
                check_best(run)
    run.log.event("ended", progress.step, {"best_dice": progress.best_dice})
    if _patience_ends(run):
        run.log.line(
            f"run      ends early, at step {progress.step} of {run.total_steps}: {progress.without_gain} validations "
            f"in a row were not better than {progress.best_dice:.3f} (trainer.patience)"
        )
    if progress.best_dice <= 0:
        run.log.line(
            "WARNING  no validation found anything (Dice 0): `best` is of the first one, `last` of the end. Look at "
            "presence and at the fixed cases (scripts/report.py), or train longer"
        )
    watch.close()


@contextmanager
def _nothing_to_lose(run: Run) -> Iterator[None]:
    """Within the context (all of training is saved) a signal ends the process at once."""
    try:
        with run.stop.nothing_to_lose():
            yield
    except SystemExit as ended:
        if error := run.writer.close():
            raise OSError(error) from ended
        _say_stopped(run, run.stop.signal)
        raise


def _patience_ends(run: Run) -> bool:
    patience = run.config.trainer.patience
    return patience is not None and run.progress.validated and run.progress.without_gain >= patience


def _run_epoch(run: Run, batches: Iterator[Batch], bar: tqdm, watch: distributed.Watch) -> None:
    """The steps from the position to the end of the epoch or of the run.

    Args:
        batches: of this epoch from the position on, then of the next.
    """
    progress, trainer = run.progress, run.config.trainer
    left = run.sampler.batches(progress.images)
    if progress.step >= run.total_steps or not left:
        return
    watch.doing(f"loads images for step {progress.step + 1}")
    for group in run.meter.waiting(_grouped(islice(batches, left), trainer.accumulation_steps)):
        watch.doing(f"computes step {progress.step + 1}")
        optimizer_step(run, group, run.meter)
        run.meter.asked.update(kind for batch in group for kind in batch.targets.kinds)
        progress.images += len(group) * run.sampler.images_per_batch * distributed.world_size()
        bar.update()
        if progress.step % trainer.log_every_steps == 0 or progress.step == run.total_steps:
            values = run.meter.read(run.optimizer)
            run.log.scalars(progress.step, values)
            # Neither is there if every step was left out.
            loss, clipped = (values.get(name, math.nan) for name in ("loss/total", "gradient/clipped_share"))
            speed = values["speed/images_per_s"]
            bar.set_postfix_str(f"loss {loss:.3g}, clipped {clipped:.0%}, {speed:.2f} images/s")
        if run.stopped:
            _stop(run)
        if progress.step == run.total_steps:
            return
        if trainer.save_every_steps and progress.step % trainer.save_every_steps == 0:
            save(run)
        watch.doing(f"loads images for step {progress.step + 1}")


def save(run: Run) -> None:
    """Begin to write `last`."""
    run.log.sync()  # the state says that these lines are there
    run.writer.save(run.loaded.model, run.average, run.optimizer, run.meter, run.progress, run.stored_config)


def _stop(run: Run) -> NoReturn:
    """All ranks have been asked to stop, or one has."""
    save(run)
    run.writer.wait()
    _say_stopped(run, run.stopped)
    raise SystemExit(exit_status(run.stopped))


def _say_stopped(run: Run, number: int) -> None:
    name = signal.Signals(number).name
    run.log.event("stopped", run.progress.step, {"signal": name})
    run.log.line(
        f"stopped by {name} after step {run.progress.step}, which is saved: run the same command again to go on"
    )


def _log_asked(run: Run) -> None:
    """How many concepts all ranks have asked for in the epoch, by kind."""
    total: Counter[str] = sum(distributed.gather_objects(run.meter.asked), Counter())
    values = {f"asked/{kind}": float(total[kind]) for kind in KINDS}
    run.log.scalars(run.progress.step, {"epoch": _epochs_done(run), **values})
    shown = ", ".join(f"{total[kind]} {kind}" for kind in KINDS if total[kind])
    run.log.line(f"epoch {run.progress.epoch + 1:3d}  asked: {shown}")


def _epochs_done(run: Run) -> float:
    """Before the epoch is counted as done; 0.5: in the middle of the first."""
    return run.progress.epoch + min(1.0, run.progress.images / run.sampler.images)


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last of an epoch may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def validate(run: Run) -> None:
    """Evaluate the weights, and their average if there is one, on the validation part; keep the better one in `best` if
    its mean Dice is the best so far."""
    models = [("validation", run.detector, run.loaded)]
    if run.average is not None:
        averaged = dataclasses.replace(run.loaded, model=cast(Sam3Model, run.average.module))
        models.append(("validation_average", TextDetector(averaged.model), averaged))
    best_before = run.progress.best_dice
    for title, detector, loaded in models:
        evaluation, absent = _evaluate(run, detector, loaded)
        mean = mean_score(evaluation.main_scores)
        run.log.scalars(run.progress.step, {"epoch": _epochs_done(run), **_measured(title, evaluation, absent)})
        run.log.pictures(run.progress.step, title.replace("validation", CASES), evaluation.overlays)
        better = mean.values["dice"] > run.progress.best_dice
        shown = "  ".join(f"{METRICS[name].title} {value:.3f}" for name, value in mean.values.items())
        fired = ", ".join(f"{name.removesuffix('/fired')} {v:.2f}" for name, v in absent.items() if "fired" in name)
        rules = f"{evaluation.rule}, {mean.queries} queries"
        for rule, scores in [*evaluation.scores.items()][1:]:
            rules += f"; {rule} {mean_score(scores).values['dice']:.3f}"
        run.log.line(
            f"epoch {run.progress.epoch + 1:3d}  {title.replace('_', ' of the ')} {shown}  ({rules})"
            f"{f'  absent fired: {fired}' if fired else ''}{'  best so far' if better else ''}"
        )
        if better:
            run.progress.best_dice = mean.values["dice"]
            if distributed.is_main():
                run.log.ensure_there()
                facts = (evaluation.main_scores, run.progress.epoch + 1, run.progress.step, run.trained_images)
                with needs_room(run.folder / "best", sum(p.nbytes for p in loaded.model.parameters())):
                    write_best(run.folder / "best", loaded, run.corpus, run.config, *facts)
    # Before anything is found there is no gain to miss: scores may reach the rule's threshold late.
    found = run.progress.best_dice > 0
    run.progress.without_gain = run.progress.without_gain + 1 if found and run.progress.best_dice <= best_before else 0
    distributed.barrier()


def _measured(title: str, evaluation: Evaluation, absent: dict[str, float]) -> dict[str, float]:
    """For the log: means over data sets, by the rule that chooses and by all; of each data set by all rules; single
    instances; refusals."""
    values = {f"{title}/{name}": value for name, value in mean_score(evaluation.main_scores).values.items()}
    for rule, scores in evaluation.scores.items():
        values |= {f"{title}/{rule}/{name}": value for name, value in mean_score(scores).values.items()}
        for dataset, score in scores.items():
            values |= {f"{title}/{rule}/{dataset}/{name}": value for name, value in score.values.items()}
    values |= {f"{title}/instances/{name}": value for name, value in scalars(evaluation.instances).items()}
    return values | {f"{title}/absent/{name}": value for name, value in absent.items()}


def check_best(run: Run) -> None:
    """Read `best` back as its users will, and measure it again: what was written is what was chosen.

    Raises:
        ValueError: it does not give the Dice that chose it.
    """
    loaded = load_sam3(str(run.folder / "best"), None)
    evaluation, _ = _evaluate(run, TextDetector(loaded.model).to(run.device), loaded)
    dice = mean_score(evaluation.main_scores).values["dice"]
    if not abs(dice - run.progress.best_dice) <= READ_BACK:
        raise ValueError(
            f"{run.folder / 'best'}: read back it has a validation Dice of {dice:.6f}, the training measured "
            f"{run.progress.best_dice:.6f}: it is not the model that was chosen; `last` is not concerned"
        )
    run.log.scalars(run.progress.step, {"check/best_dice": dice})
    run.log.line(f"best     read back from its folder: validation Dice {dice:.3f}, as measured in training")


def _evaluate(run: Run, detector: TextDetector, loaded: LoadedModel) -> tuple[Evaluation, dict[str, float]]:
    """On the validation part; and what it tells of absent concepts, see `refusal_means`."""
    config = run.config
    predictor = ImagePredictor(detector, loaded.tokenizer, loaded.image_size, config.prediction, config.trainer.bf16)
    asked = asked_images(run.corpus, dict.fromkeys(run.corpus.specs, "val"), config.evaluation)
    journal = Journal(run.folder / "validation")
    answers = ModelAnswers(predictor, run.corpus, detected_from=config.evaluation.detected_from)
    evaluation = run_evaluation(answers, run.corpus, asked, config.evaluation, journal)
    absent = distributed.from_main(lambda: refusal_means(evaluation.results, evaluation.rule))
    journal.discard()
    return evaluation, absent
