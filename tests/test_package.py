"""The package as `pip install .` makes it: it works without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, save_picture

SOURCES = ("medsam3", "configs", "data_manifests", "pyproject.toml", "setup.py", "README.md", "LICENSE")
COMMAND = "from medsam3.prediction.command import main; main()"


@pytest.mark.slow
def test_the_wheel_predicts_without_the_checkout(tmp_path):
    tree, installed, elsewhere = (tmp_path / name for name in ("tree", "installed", "elsewhere"))
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / name, tree / name)
    (tree / "configs/local.yaml").write_text("data: {root: /private}\n")
    build = "from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    run = [sys.executable, "-c"]
    subprocess.run([*run, f"import sys; {build}", str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    assert (installed / "medsam3/configs/predict.yaml").is_file() and not (
        installed / "medsam3/configs/local.yaml"
    ).exists()
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "medsam3-predict = medsam3.prediction.command:main" in entry_points.read_text()
    shutil.rmtree(tree)
    save_picture(elsewhere / "a.png", np.zeros((20, 30, 3), np.uint8))
    arguments = ["input=a.png", "prompts=polyp", "checkpoint=tiny", "image_size=56", "device=cpu"]
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, COMMAND, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = (elsewhere / "runs/prediction/run.json").read_text()
    assert (elsewhere / "runs/prediction/a.png/index.png").is_file() and '"code": "version ' in record


def test_every_room_is_installed():
    assert {path.parent.name for path in (ROOT / "medsam3").glob("*/*.py")} == {
        path.parent.name for path in Path(ROOT / "medsam3").glob("*/__init__.py")
    }
