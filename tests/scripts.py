"""Running the scripts as a user does, on the MNI152 template and the tiny model at 56 px."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    script: str, *overrides: str, cwd: Path, processes: int = 1, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script of scripts/ in a folder, with torchrun if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "scripts" / script), *overrides]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def prepare_template(folder: Path) -> list[str]:
    """Prepare the MNI152 template; returns the overrides that find its split file and cache."""
    data = [f"data.splits={folder}/splits", f"data.cache={folder}/cache"]
    run_script("prepare_data.py", "datasets=mni152", *data, cwd=folder)
    return data


def train_template(cwd: Path, data: list[str], *overrides: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Train the tiny model on the template."""
    return run_script("train.py", *SMALL, *data, *overrides, cwd=cwd, **options)  # type: ignore[arg-type]
