"""The training run, from configuration to checkpoints: `train` sets up, `_run_epochs` is the loop.

Every rank runs the same code on its own images; the gradient is the mean over ranks (paper, section 4.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import TrainConfig
from medsam3.data.augmentation import Augmentation
from medsam3.data.batch import Batch, collate
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.prompts import KINDS, PromptDraw
from medsam3.data.sampler import ImageSampler
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.evaluation.honesty import training_images
from medsam3.evaluation.metrics import METRICS, check_metrics
from medsam3.evaluation.scores import mean_score
from medsam3.files import writable_folder
from medsam3.model.detector import TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.load import load_sam3, local_checkpoint
from medsam3.model.tokenizer import ConceptTokenizer
from medsam3.prediction.image import ImagePredictor
from medsam3.training.log import RunLog, write_run_facts
from medsam3.training.losses import HEADS, SetPredictionLoss
from medsam3.training.meter import StepMeter
from medsam3.training.optim import build_optimizer
from medsam3.training.record import write_best
from medsam3.training.resume import Progress, read_last, restore, save_last
from medsam3.training.run import Run
from medsam3.training.step import optimizer_step


def train(config: TrainConfig) -> float:
    """Train, validate after every epoch, keep `best` and `last`; go on where an interrupted run of the folder stopped.

    Returns:
        The best mean validation Dice, 0..1.

    Raises:
        ValueError: a setting, a file, or too many steps without a finite loss and gradient; the message names it.
    """
    device = distributed.select_device(config.device)
    with distributed.process_group(device):
        check_metrics(config.evaluation.metrics)
        corpus = open_corpus(config.data, config.datasets)
        corpus.require(("train", "val"))
        run = set_up(config, corpus, device)
        _run_epochs(run)
        run.log.close()
        return run.progress.best_dice


def set_up(config: TrainConfig, corpus: Corpus, device: torch.device) -> Run:
    """Model, optimizer, loader and log of a run, at the start or where `last` stopped.

    Raises:
        ValueError: as `train`.
    """
    folder = writable_folder(config.output_dir, "output_dir", "output_root")
    stored_config = dataclasses.asdict(config) | {"processes": distributed.world_size()}
    state = read_last(folder / "last", stored_config)
    torch.manual_seed(config.seed)  # the weights of `tiny`
    loaded = load_sam3(str(folder / "last") if state else config.model.checkpoint, config.model.image_size)
    freeze_unreached(loaded.model, config.loss.variant)
    detector = TextDetector(
        loaded.model,
        config.model.one_to_many_queries,
        config.model.activation_checkpointing,
        HEADS[config.loss.variant],
    ).to(device)
    detector.compile_parts(config.model.compile, device)
    optimizer = build_optimizer(loaded.model, config.optim)
    dataset, sampler = _training_data(config, corpus)
    loader = _loader(dataset, sampler, config.data.workers, loaded.tokenizer)
    steps_per_epoch = math.ceil(len(loader) / config.trainer.accumulation_steps)
    total_steps = min(config.trainer.epochs * steps_per_epoch, config.trainer.max_steps or math.inf)

    torch.manual_seed(config.seed + distributed.rank())  # dropout differs between ranks
    progress = restore(state, loaded.model, optimizer) if state else Progress(0, 0, 0, -1.0)
    log = RunLog(folder, config.name, config.wandb, stored_config, progress.step)
    if distributed.is_main():
        write_run_facts(folder, yaml.safe_dump(stored_config, sort_keys=False))
    log.line(f"model    {loaded.report}")
    log.line(f"data     {corpus.describe()}")
    log.line(f"sampling {sampler.describe()}")
    start = f"resumes at step {progress.step}" if state else f"starts from {config.model.checkpoint}"
    log.line(
        f"run      {folder}: {start}, {total_steps} steps, {distributed.world_size()} process(es) on {device.type}"
    )
    return Run(
        config=config,
        stored_config=stored_config,
        folder=folder,
        device=device,
        corpus=corpus,
        dataset=dataset,
        sampler=sampler,
        loader=loader,
        loaded=loaded,
        detector=detector,
        network=_average_gradients(detector, device),
        criterion=SetPredictionLoss(config.loss),
        optimizer=optimizer,
        total_steps=int(total_steps),
        progress=progress,
        log=log,
        trained_images=training_images(corpus, local_checkpoint(config.model.checkpoint))
        if distributed.is_main()
        else {},
    )


def _average_gradients(detector: TextDetector, device: torch.device) -> nn.Module:
    if not distributed.active():
        return detector
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(detector, device_ids=device_ids, gradient_as_bucket_view=True)


def _training_data(config: TrainConfig, corpus: Corpus) -> tuple[QueryDataset, ImageSampler]:
    data = config.data
    dataset = QueryDataset(
        corpus,
        part="train",
        image_size=config.model.image_size,
        prompts=PromptDraw(corpus, data.max_queries, data.absent_concepts, data.hard_negatives, data.synonyms),
        seed=config.seed,
        max_targets=data.max_targets,
        augmentation=Augmentation(data.augmentation, corpus.specs) if data.augmentation.modalities else None,
    )
    sampler = ImageSampler(
        dataset,
        weights=data.weights,
        images_per_batch=config.trainer.images_per_process,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        max_repeats=data.max_repeats,
    )
    return dataset, sampler


def _loader(
    dataset: QueryDataset, sampler: ImageSampler, workers: int, tokenizer: ConceptTokenizer
) -> DataLoader[Batch]:
    loader: Any = DataLoader(  # of samples, which collate packs into batches
        dataset,
        batch_sampler=sampler,
        num_workers=distributed.loading_processes(workers),
        collate_fn=partial(collate, tokenizer=tokenizer),
        pin_memory=torch.cuda.is_available(),
    )
    return loader


def _run_epochs(run: Run) -> None:
    progress, trainer = run.progress, run.config.trainer
    meter = StepMeter(run.device)
    bar = tqdm(
        total=run.total_steps, initial=progress.step, unit="step", disable=not distributed.is_main(), mininterval=2.0
    )
    while progress.step < run.total_steps:
        asked: Counter[str] = Counter()
        run.sampler.set_position(progress.epoch, progress.batch)
        run.dataset.set_epoch(progress.epoch)
        for batches in _grouped(run.loader, trainer.accumulation_steps):
            optimizer_step(run, batches, meter)
            asked.update(kind for batch in batches for kind in batch.targets.kinds)
            progress.batch += len(batches)
            bar.update()
            if progress.step % trainer.log_every_steps == 0 or progress.step == run.total_steps:
                values = meter.read(run.optimizer)
                run.log.scalars(progress.step, values)
                loss = values.get("loss/total", math.nan)  # none if every step was left out
                bar.set_postfix_str(f"loss {loss:.3g}, {values['speed/images_per_s']:.2f} images/s")
            if progress.step == run.total_steps:
                break
            if trainer.save_every_steps and progress.step % trainer.save_every_steps == 0:
                save_last(run.folder / "last", run.loaded.model, run.optimizer, progress, run.stored_config)
        progress.epoch += 1
        progress.batch = 0
        _log_asked(run, asked)
        _validate(run)
        meter.restart()
        save_last(run.folder / "last", run.loaded.model, run.optimizer, progress, run.stored_config)
    bar.close()


def _log_asked(run: Run, asked: Counter[str]) -> None:
    """How many concepts all ranks asked for in the epoch, or since the run was resumed in it, by kind."""
    total: Counter[str] = sum(distributed.gather_objects(asked), Counter())
    run.log.scalars(run.progress.step, {f"asked/{kind}": float(total[kind]) for kind in KINDS})
    shown = ", ".join(f"{total[kind]} {kind}" for kind in KINDS if total[kind])
    run.log.line(f"epoch {run.progress.epoch:3d}  asked: {shown}")


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last of an epoch may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _validate(run: Run) -> None:
    """Evaluate on the validation part; keep the model in `best` if its mean Dice is the best so far."""
    predictor = ImagePredictor(
        run.detector, run.loaded.tokenizer, run.config.model.image_size, run.config.prediction, run.config.trainer.bf16
    )
    asked = asked_images(run.corpus, dict.fromkeys(run.corpus.specs, "val"), run.config.evaluation)
    evaluation = run_evaluation(ModelAnswers(predictor, run.corpus), run.corpus, asked, run.config.evaluation)
    mean = mean_score(evaluation.main_scores)
    values = {f"validation/{metric}": value for metric, value in mean.values.items()}
    for name, score in evaluation.main_scores.items():
        values |= {f"validation/{name}/{metric}": value for metric, value in score.values.items()}
    for rule, scores in evaluation.scores.items():
        values |= {f"validation/{rule}/{metric}": value for metric, value in mean_score(scores).values.items()}
    run.log.scalars(run.progress.step, values)
    run.log.pictures(run.progress.step, evaluation.overlays)
    better = mean.values["dice"] > run.progress.best_dice
    shown = "  ".join(
        f"{metric.title} {mean.values[name]:.3f}" for name, metric in METRICS.items() if name in mean.values
    )
    run.log.line(
        f"epoch {run.progress.epoch:3d}  validation {shown}  ({evaluation.rule}, {mean.queries} queries)"
        f"{'  best so far' if better else ''}"
    )
    if better:
        run.progress.best_dice = mean.values["dice"]
        if distributed.is_main():
            progress = run.progress
            write_best(
                run.folder / "best",
                run.loaded,
                run.corpus,
                run.config,
                evaluation.main_scores,
                progress.epoch,
                progress.step,
                run.trained_images,
            )
    distributed.barrier()
