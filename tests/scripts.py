"""Running the scripts as a user does, on the MNI152 template and the tiny model at 56 px."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # sums of several threads differ in the last bit
SMALL = [
    "model=tiny",
    "model.checkpoint=tiny",
    "model.image_size=56",
    "datasets=mni152",
    "data.workers=0",
    "evaluation.images=2",
    "evaluation.workers=0",
    "evaluation.overlays=1",
    "trainer.log_every_steps=1",
    "wandb.mode=off",
    "device=cpu",
]


def run_script(
    script: str, *overrides: str, cwd: Path, processes: int = 0, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script of scripts/ in a folder, as its command line does.

    Args:
        processes: of its own, torchrun's if there are several; 0: in this process, which saves the seconds of imports.
    """
    path = str(ROOT / "scripts" / script)
    if processes == 0:
        done = _run_here(path, overrides, cwd)
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), path, *overrides]
        done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _run_here(path: str, overrides: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [path, *overrides]),
        mock.patch.dict(os.environ),
    ):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess([path, *overrides], code, out.getvalue(), err.getvalue())


def template_at(folder: Path) -> list[str]:
    """The overrides with which a script finds split file and cache in this folder."""
    return [f"data.splits={folder}/splits", f"data.cache={folder}/cache"]


def prepare_template(folder: Path) -> list[str]:
    """Prepare the MNI152 template; returns the overrides that find it."""
    run_script("prepare_data.py", "datasets=mni152", *template_at(folder), cwd=folder)
    return template_at(folder)


def train_template(cwd: Path, data: list[str], *overrides: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Train the tiny model on the template."""
    return run_script("train.py", *SMALL, *data, *overrides, cwd=cwd, **options)  # type: ignore[arg-type]
