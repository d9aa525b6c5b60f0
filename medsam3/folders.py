"""The files that come with the code: beside it in a checkout, inside the package where it is installed."""

from __future__ import annotations

from pathlib import Path


def _shipped(name: str) -> Path:
    packaged = Path(__file__).parent / name
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / name


CONFIG_FOLDER = _shipped("configs")
MANIFESTS = _shipped("data_manifests")
