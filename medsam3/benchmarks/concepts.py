"""One image with many queries against as many images with one query each: what the shared ViT pass is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch
from transformers import Sam3Config, Sam3Model

from medsam3.benchmarks.loader import interleaved
from medsam3.benchmarks.parts import SEED
from medsam3.checkpoints.model_config import sized
from medsam3.model.detector import TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.tiny import tiny_config

TOKENS = 32  # of a prompt


def concept_times(model: str, image_size: int, queries: int, repeats: int) -> tuple[Sequence[float], Sequence[float]]:
    """CPU time in ms, forward and backward, random weights, both halves and the semantic output, on one thread: of one
    image with all queries, and of as many images with one query each. The two take turns.

    Args:
        model: sam3 (the released size) | tiny.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    sam3 = Sam3Model(tiny_config(image_size) if model == "tiny" else sized(Sam3Config(), image_size))
    freeze_unreached(sam3, "paper")
    detector = TextDetector(sam3, one_to_many=True, heads=("semantic",)).train()
    prompts = torch.randint(1, 1000, (queries, TOKENS))
    steps = {
        "one image": partial(_steps, detector, [prompts], image_size),
        "many": partial(_steps, detector, list(prompts.split(1)), image_size),
    }
    times = interleaved(steps, repeats, time.process_time)
    return times["one image"], times["many"]


def _steps(detector: TextDetector, images: Sequence[torch.Tensor], image_size: int) -> None:
    """One after another, for each image its [queries, TOKENS] prompts."""
    for prompts in images:
        queries = len(prompts)
        output = detector(
            torch.rand(1, 3, image_size, image_size),
            torch.zeros(queries, dtype=torch.int64),
            prompts,
            torch.ones_like(prompts),
            torch.arange(queries),
        )
        values = [output.presence, output.semantic]
        values += [value for half in (output.one_to_one, output.one_to_many) for value in (half.logits, half.boxes)]
        torch.stack([value.mean() for value in values]).sum().backward()
        detector.zero_grad()
