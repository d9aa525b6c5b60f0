"""Time from files, or from cached slices, to a training sample.

Times are CPU times of one thread, as a data loading process has it (the files are in memory after the first round), and
medians over interleaved repeats: what else the machine does meets both sides of a comparison alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medsam3.benchmarks.parts import MANY_QUERIES, SEED, training_config
from medsam3.data.augmentation import Augmentation
from medsam3.data.batch import Query, Sample
from medsam3.data.corpus import Corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.prompts import PromptDraw
from medsam3.data.transforms import Frame, square, to_query
from medsam3.layouts.instances import Instances

Steps = Mapping[str, Callable[[], object]]


def interleaved(steps: Steps, repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Milliseconds of each step, `repeats` times all of them in turn; a first round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(1000 * (clock() - start))
    return {name: values[1:] for name, values in times.items()}


@dataclass(frozen=True)
class LoaderTimes:
    """Medians over images and repeats, ms."""

    subject: str  # how many images of which size
    slices: bool  # cut from volumes and cached, not image files
    sample_mb: float  # what goes from process to process, mean
    baseline: float  # PIL's decoding and resize of the image file; of a slice the resize alone
    sample: float
    augmented: float  # sample with augmentation=by_modality
    beyond: float  # sample - baseline of the same round
    ratio: float  # sample / baseline of the same round
    parts: dict[str, float]  # what the sample's time goes to


def decode_and_resize(path: Path, image_size: int) -> Image.Image:
    """What no loader can do without: the file decoded by PIL and resized once."""
    with Image.open(path) as file:
        return file.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)


def loader_times(corpus: Corpus, image_size: int, repeats: int) -> LoaderTimes:
    """From the files of the corpus's only data set to a sample."""
    torch.set_num_threads(1)
    prompts = PromptDraw(corpus, MANY_QUERIES)
    dataset = QueryDataset(corpus, "train", image_size, prompts, SEED)
    varied = QueryDataset(corpus, "train", image_size, prompts, SEED, augmentation=_by_modality(corpus))
    (reader,) = corpus.readers.values()
    slices = bool(reader.unpack_jobs())
    collected: list[dict[str, list[float]]] = []
    sizes, instances, sample_bytes = [], 0, []
    for place in range(len(dataset)):
        item = reader.item(dataset.images[place].item)
        image, masks = reader.image(item), reader.masks(item)
        steps: Steps = {
            "baseline": partial(square, image, image_size)
            if slices
            else partial(decode_and_resize, reader.root / item.image, image_size),
            "sample": partial(dataset.__getitem__, place),
            "augmented": partial(_each_time_another, varied, place, count()),
            "read the image": partial(reader.image, item),
            "read the masks": partial(reader.masks, item),
            "resize the image": partial(square, image, image_size),
            "resize the masks": partial(_queries, masks, image_size),
        }
        collected.append(interleaved(steps, repeats, time.process_time))
        sample_bytes.append(bytes_of(dataset[place]))
        sizes.append(image.shape[:2])
        instances += sum(len(found) for found in masks.values())
    times = {step: np.concatenate([values[step] for values in collected]) for step in collected[0]}
    sample, plain, augmented = times.pop("sample"), times.pop("baseline"), times.pop("augmented")
    (height, width), (high, wide) = np.min(sizes, axis=0), np.max(sizes, axis=0)
    sizes_seen = f"{width} x {height} to {wide} x {high} px"
    return LoaderTimes(
        subject=f"{len(dataset)} of {sizes_seen}, {instances / len(dataset):.1f} masks each",
        slices=slices,
        sample_mb=float(np.mean(sample_bytes)) / 1e6,
        baseline=float(np.median(plain)),
        sample=float(np.median(sample)),
        augmented=float(np.mean(augmented)),  # steps come by chance: the mean counts
        beyond=float(np.median(sample - plain)),
        ratio=float(np.median(sample / plain)),
        parts={step: float(np.median(values)) for step, values in times.items()},
    )


def bytes_of(data: object) -> int:
    """Of the tensors of a dataclass, and of what it holds."""
    if isinstance(data, torch.Tensor):
        return data.nbytes
    if isinstance(data, list):
        return sum(bytes_of(value) for value in data)
    return sum(bytes_of(value) for value in vars(data).values()) if is_dataclass(data) else 0


def _by_modality(corpus: Corpus) -> Augmentation:
    return Augmentation(training_config("augmentation=by_modality").data.augmentation, corpus.specs)


def _each_time_another(dataset: QueryDataset, place: int, epochs: Iterator[int]) -> Sample:
    dataset.set_epoch(next(epochs))
    return dataset[place]


def _queries(masks: Mapping[str, Instances], image_size: int) -> list[Query]:
    return [to_query(concept, concept, found, Frame.full(image_size)) for concept, found in masks.items()]
