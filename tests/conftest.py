"""Fixtures that several test files share: the real files beside the checkout, and small data sets made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from medsam3.config import DataConfig, PrepareConfig, SplitConfig
from medsam3.layouts.instances import Instances
from medsam3.layouts.reader import Reader
from medsam3.layouts.readers import check_reader, open_reader
from medsam3.registry.spec import DatasetSpec, load_spec
from tests.scripts import prepare_template, template_at, train_template

torch.set_num_threads(1)  # sums of several threads differ in the last bit, and tests run side by side
ROOT = Path(__file__).resolve().parent.parent
SMALL_SET: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "modality": "ultrasound",
    "used_for": ["train"],
    "reader": "image_mask",
    "root": "small",
    "images": "images/{id}.png",
    "masks": "masks/{id}.png",
    "concepts": {1: "left square", 2: "right square"},
}


@pytest.fixture(scope="session")
def shared_realdata() -> Path:
    """The folder of real data sets, as downloaded."""
    folder = ROOT.parent / "shared" / "realdata"
    if not folder.is_dir():
        pytest.skip(f"no real data: the folder {folder} is not there")
    return folder


def once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the processes of this test run fills for all of them; nobody writes into it afterwards."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> list[str]:
    """The overrides with which a script finds the MNI152 template, prepared."""
    return template_at(once(tmp_path_factory, "template", prepare_template))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory) -> Path:
    """A run of one step at 56 px, called `run`. Nobody writes into its folder; copy it to go on with it."""
    one_step = ("name=run", "trainer.max_steps=1")
    return once(tmp_path_factory, "trained", lambda folder: train_template(folder, data, *one_step)) / "runs/run"


class SpecWriter:
    """Writes data set files into a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, **changes: Any) -> DatasetSpec:
        """The small set's description with some keys changed (None: taken out), written, read back and checked."""
        content = {key: value for key, value in (SMALL_SET | changes).items() if value is not None}
        path = self.folder / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        spec = load_spec(path)
        check_reader(spec)
        return spec


SQUARE = np.zeros((40, 60), bool)
SQUARE[10:20, 5:15] = True
BAR = np.zeros((40, 60), bool)
BAR[30:33, 20:50] = True
GREY = np.arange(40 * 60).reshape(40, 60).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where `reader_of` reads."""
    return tmp_path / "data/small"


@pytest.fixture
def reader_of(make_spec, tmp_path) -> Callable[..., Reader]:
    """A reader of the files in `folder`, by the small description with some keys changed."""
    return lambda **changes: open_reader(make_spec(**changes), tmp_path / "data", tmp_path / "cache")


def one_pair(folder: Path, save: Callable[..., Path], mask: Any, name: str = "a.png", **options: Any) -> None:
    """An image images/a.png and its mask."""
    save(folder / "images/a.png", GREY)
    save(folder / "masks" / name, mask, **options)


def masks_of(reader: Reader) -> dict[str, Instances]:
    """The masks of a reader's only item."""
    (item,) = reader.items()
    return reader.masks(item)


@pytest.fixture
def make_spec(tmp_path) -> SpecWriter:
    return SpecWriter(tmp_path / "specs")


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_picture


def save_picture(path: Path, pixels: Any, **options: Any) -> Path:
    """Write an array as an image file; bool arrays become 1-bit files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(pixels)
    Image.fromarray(array if array.dtype != np.int64 else array.astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def small_set(tmp_path, make_spec) -> tuple[DatasetSpec, DataConfig]:
    """Twelve 40 x 60 images p<patient>_<n>: the left square in all, the right square in every second one."""
    for n in range(12):
        name = f"p{n // 3}_{n:02d}.png"
        picture = np.random.RandomState(n).randint(0, 256, (40, 60, 3)).astype(np.uint8)
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 5:15] = 1
        mask[22:30, 30 + n : 40 + n] = 2 * (n % 2)
        save_picture(tmp_path / "data/small/images" / name, picture)
        save_picture(tmp_path / "data/small/masks" / name, mask)
    return make_spec(group=r"^(p\d+)_"), data_config(tmp_path)


def prepare_config(
    data: DataConfig, datasets: Any = "small", skip_broken: bool = False, workers: int = 0
) -> PrepareConfig:
    return PrepareConfig(
        name="prepare",
        output_root="",
        output_dir="",
        device="cpu",
        seed=0,
        datasets=datasets,
        skip_broken=skip_broken,
        workers=workers,
        pictures=0,
        export=None,
        export_folder="",
        export_id=701,
        export_concepts=None,
        data=data,
    )


def data_config(tmp_path: Path, root: Path | None = None, by: str = "image") -> DataConfig:
    """Settings with all folders below tmp_path."""
    return DataConfig(
        root=str(root or tmp_path / "data"),
        splits=str(tmp_path / "splits"),
        cache=str(tmp_path / "cache"),
        split=SplitConfig(by=by, train_fraction=0.85, test_fraction=0.0, seed=42),
        prompts="canonical",
    )
