"""Run: the parts of a training run, and how they are put together at its start or where `last` stopped."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from transformers import Sam3Config

from medsam3 import distributed
from medsam3.checkpoints.model_card import MASKS_TRAINED
from medsam3.config import TrainConfig
from medsam3.data.augmentation import Augmentation
from medsam3.data.batch import Batch, collate
from medsam3.data.corpus import Corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.prompts import PromptDraw
from medsam3.data.sampler import EndlessSampler, ImageSampler
from medsam3.evaluation.honesty import training_images
from medsam3.model.adapt import adapt
from medsam3.model.detector import TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.load import LoadedModel, load_sam3, local_checkpoint, shape_of_sam3
from medsam3.model.regularisation import regularise
from medsam3.model.tokenizer import ConceptTokenizer
from medsam3.training.average import averaged_weights, gigabytes
from medsam3.training.log import RunLog, device_name, write_run_facts
from medsam3.training.losses import HEADS, SetPredictionLoss
from medsam3.training.meter import StepMeter, Workload
from medsam3.training.optim import build_optimizer
from medsam3.training.plan import Fit, fitting, peak_flops
from medsam3.training.resume import GROWING_KEYS, Progress, StateWriter, data_hashes, read_last, restore
from medsam3.training.schedule import batch_factor, rates_of_run
from medsam3.training.schedule import describe as describe_rates
from medsam3.training.stopping import StopRequest


@dataclass
class Run:
    config: TrainConfig
    stored_config: dict[str, object]
    folder: Path
    device: torch.device
    corpus: Corpus
    dataset: QueryDataset
    sampler: ImageSampler
    loader: DataLoader[Batch]  # from the sampler's position on, without end
    loaded: LoadedModel
    average: AveragedModel | None
    detector: TextDetector
    network: nn.Module  # the detector, wrapped for gradient averaging if there are several processes
    criterion: SetPredictionLoss
    optimizer: Optimizer
    meter: StepMeter
    total_steps: int
    progress: Progress
    log: RunLog
    writer: StateWriter
    stop: StopRequest
    trained_images: dict[str, list[str]]  # fingerprints by data set; on the main rank, which writes `best`
    stopped: int = 0  # the signal by which all ranks have agreed to stop


def set_up(config: TrainConfig, corpus: Corpus, device: torch.device) -> Run:
    """Model, optimizer, loader and log of a run, at the start or where `last` stopped.

    Raises:
        ValueError: as `trainer.train`.
    """
    folder, processes = Path(config.output_dir), distributed.world_size()
    stored_config = dataclasses.asdict(config) | {"processes": processes} | data_hashes(corpus, config)
    state = read_last(folder / "last", stored_config)
    torch.manual_seed(config.seed)  # the weights of `tiny`
    loaded = _loaded(config, folder / "last" if state else None)
    fit = _fit(config, loaded, device)
    freeze_unreached(loaded.model, config.loss.variant)
    adapt(loaded.model, config.model.adapt)
    decay = config.trainer.average_decay
    average = None if decay is None else averaged_weights(loaded.model, decay, device)
    regularise(loaded.model, config.model.regularisation)
    one_to_many, heads = config.model.one_to_many_queries, HEADS[config.loss.variant]
    detector = TextDetector(loaded.model, one_to_many, fit.checkpointing, heads).to(device)
    detector.compile_parts(config.model.compile, device)
    factor = batch_factor(config.optim, config.trainer, processes)
    optimizer = build_optimizer(loaded.model, config.optim, factor)
    dataset, sampler = _training_data(config, corpus)

    torch.manual_seed(config.seed + distributed.rank())  # dropout differs between ranks
    base_rates = [group["base_lr"] for group in optimizer.param_groups]
    progress = restore(state, loaded.model, average, optimizer, config.seed) if state else Progress()
    for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
        group["base_lr"] = rate  # of this number of processes
    total_steps = _total_steps(config, sampler, progress)
    log = RunLog(folder, config.name, config.wandb, stored_config, progress.step, progress.validated)
    if distributed.is_main():
        write_run_facts(folder, yaml.safe_dump(stored_config, sort_keys=False))
    rates = describe_rates(rates_of_run(optimizer, total_steps, config.optim), total_steps, config.optim, factor)
    run = Run(
        config=config,
        stored_config=stored_config,
        folder=folder,
        device=device,
        corpus=corpus,
        dataset=dataset,
        sampler=sampler,
        loader=_loader(dataset, sampler, config.data.workers, loaded.tokenizer),
        loaded=loaded,
        average=average,
        detector=detector,
        network=_average_gradients(detector, device, config.trainer.exchange),
        criterion=SetPredictionLoss(config.loss, compiled=config.model.compile == "all"),
        optimizer=optimizer,
        meter=_meter(device, _workload(device, config, fit), state["meters"] if state else []),
        total_steps=total_steps,
        progress=progress,
        log=log,
        writer=StateWriter(folder / "last", config.trainer.keep_states, progress.step),
        stop=StopRequest(),
        trained_images=training_images(corpus, local_checkpoint(config.model.checkpoint))
        if distributed.is_main()
        else {},
    )
    _say(run, rates, fit.said, state["config"] if state else None)
    return run


def _fit(config: TrainConfig, loaded: LoadedModel, device: torch.device) -> Fit:
    """What a CPU does is not planned. Errors: see `fitting`."""
    if device.type != "cuda":
        return Fit(config.model.activation_checkpointing.replace("auto", "none"), "", (0.0, 0.0))
    total_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return fitting(config, cast(Sam3Config, loaded.model.config), total_gib, distributed.world_size())


def _workload(device: torch.device, config: TrainConfig, fit: Fit) -> Workload | None:
    """None where no peak is known."""
    peak = peak_flops(device_name(device), config.trainer.bf16)
    return Workload(*fit.model_flops, peak) if peak else None


def _loaded(config: TrainConfig, last: Path | None) -> LoadedModel:
    """The model that the run starts from; of `last` with adapters only the shape, as `restore` brings all weights."""
    if last is None or config.model.adapt.mode != "lora":
        return load_sam3(str(last or config.model.checkpoint), config.model.image_size)
    return shape_of_sam3(last, config.model.image_size)


def _say(run: Run, rates: str, planned: str, before: dict[str, Any] | None) -> None:
    """The first lines of a run: what it starts from, on what data, at which rates.

    Args:
        before: the stored configuration of the run that is resumed; None: it starts.
    """
    config, progress, processes = run.config, run.progress, distributed.world_size()
    say = run.log.line
    say(f"model    {run.loaded.report}")
    say(f"data     {run.corpus.describe()}")
    say(f"sampling {run.sampler.describe()}")
    say(rates)
    if planned:
        say(f"memory   {planned}")
    mfu = str(run.meter.work or f"no MFU: no peak is known of {device_name(run.device)}")
    say(f"speed    {mfu}")
    if run.average is not None:
        decay, room = config.trainer.average_decay, gigabytes(run.average)
        say(f"average  of the weights, decay {decay}: {room:.2g} GB more memory per process")
    rule, *others = config.prediction.rules
    beside = f", {' and '.join(others)} beside it" if others else ""
    say(f"masks    {rule} chooses the best{beside}; {MASKS_TRAINED[HEADS[config.loss.variant]].replace('`', '')}")
    start = f"starts from {config.model.checkpoint}" if before is None else f"resumes at step {progress.step}"
    if progress.validated and progress.step >= run.total_steps:
        start = f"is finished at step {progress.step} (trainer.epochs and trainer.max_steps may grow)"
    say(f"run      {run.folder}: {start}, {run.total_steps} steps, {processes} process(es) on {run.device.type}")
    facts = {"total_steps": run.total_steps, "processes": processes, "device": device_name(run.device), "mfu": mfu}
    run.log.event("started" if before is None else "resumed", progress.step, facts)
    if before is not None:
        _say_changes(run, before)


def _say_changes(run: Run, before: dict[str, Any]) -> None:
    """What makes the numbers of a resumed run others than those of an unbroken one."""
    say, progress, processes = run.log.line, run.progress, distributed.world_size()
    if before["processes"] != processes:
        images = run.sampler.images_per_batch * processes
        say(
            f"run      had {before['processes']} process(es) before: the epoch goes on at its image {progress.images} "
            f"of {run.sampler.images}, a step now has {images} images and random numbers are drawn anew, so the "
            "numbers are not those of an unbroken run"
        )
    length = {key: before["trainer"][key] for key in GROWING_KEYS}
    shorter = dataclasses.replace(run.config, trainer=dataclasses.replace(run.config.trainer, **length))
    planned = _total_steps(shorter, run.sampler, progress)
    if planned != run.total_steps:
        say(
            f"run      was planned for {planned} steps before: its rates went by those and from here on go by "
            f"{run.total_steps}, so the numbers are not those of a run planned for so many at once"
        )


def _total_steps(config: TrainConfig, sampler: ImageSampler, progress: Progress) -> int:
    """Steps done and those that are left, which are of another size if the number of processes has changed."""
    steps = [math.ceil(sampler.batches(first) / config.trainer.accumulation_steps) for first in (0, progress.images)]
    epochs_left = max(0, config.trainer.epochs - progress.epoch - 1)
    left = steps[1] + epochs_left * steps[0] if progress.epoch < config.trainer.epochs else 0
    return int(min(progress.step + left, config.trainer.max_steps or math.inf))


def _meter(device: torch.device, work: Workload | None, states: list[dict[str, Any]]) -> StepMeter:
    """This rank's meter as it was left; for another number of processes what was asked in the epoch so far is kept."""
    if len(states) == distributed.world_size():
        return StepMeter(device, work, states[distributed.rank()])
    meter = StepMeter(device, work)
    for state in states if distributed.is_main() else []:
        meter.asked.update(state["asked"])
    return meter


def _average_gradients(detector: TextDetector, device: torch.device, exchange: str) -> nn.Module:
    if not distributed.active():
        return detector
    device_ids = [device.index] if device.type == "cuda" else None
    network = DistributedDataParallel(detector, device_ids=device_ids, gradient_as_bucket_view=True)
    if exchange == "bfloat16":
        network.register_comm_hook(None, bf16_compress_hook)
    return network


def _training_data(config: TrainConfig, corpus: Corpus) -> tuple[QueryDataset, ImageSampler]:
    data = config.data
    dataset = QueryDataset(
        corpus,
        part="train",
        image_size=config.model.image_size,
        prompts=PromptDraw(
            corpus, data.max_queries, data.absent_concepts, data.hard_negatives, data.synonyms, data.own_negatives
        ),
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
        batch_sampler=EndlessSampler(sampler),
        num_workers=distributed.loading_processes(workers),
        collate_fn=partial(collate, tokenizer=tokenizer),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=distributed.heed_parent_alone,
        generator=torch.Generator(),  # else each start of a run, resumed ones too, takes a number from dropout's
    )
    return loader
