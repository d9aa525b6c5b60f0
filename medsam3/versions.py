"""Which code made a result: the commit of this package and the versions of what it stands on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
from pathlib import Path

PACKAGES = ("medsam3", "torch", "torchvision", "transformers", "numpy", "scipy", "pillow", "hydra-core")


def code_version() -> str:
    """The git commit of this package, or its version where it is installed without its history."""
    command, checkout, answer = ["git", "describe", "--always", "--dirty"], Path(__file__).parents[1], ""
    if (checkout / "pyproject.toml").is_file():  # an installed package may lie in a repository of something else
        with contextlib.suppress(FileNotFoundError):  # no git
            answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()
    return answer or f"version {_version('medsam3')}"


def package_versions() -> dict[str, str | None]:
    """By name; None: not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
