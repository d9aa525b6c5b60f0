"""What the page does when something is pressed or moved, without the page: studies in, HTML and files out."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medsam3 import distributed
from medsam3.checkpoints.weights import weights_hash
from medsam3.config import DemoConfig
from medsam3.demo.downloads import archive
from medsam3.demo.study import FLOOR, RULE, Study, open_study
from medsam3.model.detector import TextDetector
from medsam3.model.load import LoadedModel, load_sam3
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.jobs import prompts_of
from medsam3.prediction.remarks import remarks
from medsam3.prediction.volume_predictor import VolumePredictor, open_volume_predictor
from medsam3.scans.scan import Scan


@dataclass(frozen=True)
class Visits:
    """One model for all visitors; what each works on is a Study."""

    config: DemoConfig
    folder: Path  # holds the files of visitors; nobody can download them
    cache: Path  # Gradio's: what comes in, and the archives of masks
    loaded: LoadedModel
    predictor: ImagePredictor
    weights: str  # hash
    volumes: VolumePredictor | None  # with a tracker; None: the page was started without

    @classmethod
    def open(cls, config: DemoConfig, folder: Path, cache: Path) -> Visits:
        """Load the model. ValueError if it cannot be."""
        device = distributed.select_device(config.device)
        torch.manual_seed(config.seed)  # the weights of `tiny`
        loaded = load_sam3(config.checkpoint, config.image_size)
        all_instances = dataclasses.replace(config.prediction, rules=[RULE], union_threshold=FLOOR)
        detector = TextDetector(loaded.model).to(device).eval()
        predictor = ImagePredictor(detector, loaded.tokenizer, loaded.image_size, all_instances, config.bf16)
        volumes = None
        if config.volume.mode == "tracker" or config.volume.tracker is not None:
            follow = dataclasses.replace(config.volume, mode="tracker")
            volumes = open_volume_predictor(predictor, follow, config.checkpoint)
        return cls(config, folder, cache, loaded, predictor, weights_hash(loaded.model), volumes)

    @property
    def about(self) -> str:
        """The model in words."""
        random = " (random weights: its masks mean nothing)" if self.config.checkpoint == "tiny" else ""
        return f"{self.config.checkpoint}{random}, {self.loaded.image_size} px, {self.predictor.device.type}"

    def opened(self, files: Sequence[str] | None) -> Study:
        """An upload as a study with a folder of its own; ValueError if it is no picture or volume."""
        paths = [Path(file) for file in files or ()]
        if not all(path.resolve().is_relative_to(self.cache.resolve()) for path in paths):
            raise ValueError("only what was uploaded here")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            return open_study(paths, folder, self.config)
        except BaseException:
            shutil.rmtree(folder)
            raise

    def asked(self, study: Study | None, words: str, threshold: float, follow: bool = False) -> Iterator[str]:
        """Ask for the words, with commas or lines between them; yields how far it is. ValueError: nothing to do.

        Args:
            threshold: of a tracker, where concepts are to be followed through a volume.
        """
        if study is None or study.closed:
            raise ValueError("upload a picture or volume first, or take an example")
        prompts = prompts_of([text for text in re.split(r"[,;\n]", words) if text.strip()], "prompts")
        if self.volumes is not None and follow and isinstance(study.source, Scan):
            settings = dataclasses.replace(self.predictor.config, union_threshold=threshold, tile=None)
            own, size = self.predictor, self.predictor.image_size
            predictor = ImagePredictor(own.detector, own.tokenizer, size, settings, own.bf16)
            yield from study.follow(prompts, dataclasses.replace(self.volumes, predictor=predictor))
        else:
            yield from study.ask(prompts, self.predictor, self.config.pictures_per_pass)

    def notes(self, study: Study) -> list[str]:
        """What the visitor should know of the file, the words and the model."""
        lines = [*study.source.notes, *study.remarks]
        if study.series:
            lines.append(f"the upload holds {len(study.series)} series; choose one above")
        window = getattr(study.source, "window_from", None)
        return [*lines, *([f"window from {window}"] if window else []), *remarks(self.loaded, study.layers)]

    def archive(self, study: Study | None, threshold: float) -> str:
        """The path of a new archive of masks. ValueError: there are none."""
        if study is None or study.closed:
            raise ValueError("there are no masks yet: segment first")
        self.cache.mkdir(exist_ok=True)
        study.download = study.download or Path(tempfile.mkdtemp(dir=self.cache))
        return str(archive(study, threshold, study.download, self.about, self.weights))

    def words_of(self, error: BaseException) -> str:
        """An error as the visitor should read it, without the folders of this machine."""
        text = str(error) or type(error).__name__
        return re.sub(rf"{re.escape(str(self.folder))}(/[^\s/:]*)*/", "", text)
