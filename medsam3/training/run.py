"""Run: the parts of a training run, as trainer.set_up puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from medsam3.config import TrainConfig
from medsam3.data.batch import Batch
from medsam3.data.corpus import Corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.sampler import ImageSampler
from medsam3.model.detector import TextDetector
from medsam3.model.load import LoadedModel
from medsam3.training.log import RunLog
from medsam3.training.losses import SetPredictionLoss
from medsam3.training.resume import Progress


@dataclass
class Run:
    config: TrainConfig
    stored_config: dict[str, object]
    folder: Path
    device: torch.device
    corpus: Corpus
    dataset: QueryDataset
    sampler: ImageSampler
    loader: DataLoader[Batch]
    loaded: LoadedModel
    detector: TextDetector
    network: nn.Module  # the detector, wrapped for gradient averaging if there are several processes
    criterion: SetPredictionLoss
    optimizer: Optimizer
    total_steps: int
    progress: Progress
    log: RunLog
    trained_images: dict[str, list[str]]  # fingerprints by data set; on the main rank, which writes `best`
