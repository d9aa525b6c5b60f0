"""The training loop on the tiny model: every experiment takes a step, a resumed run equals the unbroken one, two processes give
the gradient of one process with both batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
SMALL = [
    "model=tiny",
    "model.image_size=56",
    "data.datasets=mni152",
    "data.workers=0",
    "evaluation.images=2",
    "evaluation.workers=0",
    "evaluation.overlays=1",
    "trainer.log_every_steps=1",
    "wandb.mode=off",
    "device=cpu",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with the split file and the volume cache of the MNI152 template."""
    folder = tmp_path_factory.mktemp("prepared")
    run_script("prepare_data.py", "dataset=mni152", *_data(folder), cwd=folder)
    return folder


def _data(folder: Path) -> list[str]:
    return [f"data.splits={folder}/splits", f"data.cache={folder}/cache"]


def run_script(script: str, *overrides: str, cwd: Path, processes: int = 1, check: bool = True):
    command = [sys.executable, str(ROOT / "scripts" / script), *overrides]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command[1:1] = launcher
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def train(prepared: Path, cwd: Path, *overrides: str, **options):
    return run_script("train.py", *SMALL, *_data(prepared), *overrides, cwd=cwd, **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last/state.pt", weights_only=True)["model"]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/total"] for line in lines if "loss/total" in line]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_one_step(experiment, prepared, tmp_path):
    train(prepared, tmp_path, f"experiment={experiment}", "trainer.max_steps=1", "model.checkpoint=tiny")
    run = tmp_path / "runs" / experiment
    assert len(losses(run)) == 1
    assert {path.name for path in run.iterdir()} >= {"best", "last", "config.yaml", "environment.json", "metrics.jsonl"}


def test_a_resumed_run_equals_the_unbroken_one(prepared, tmp_path):
    settings = ["trainer.epochs=2", "trainer.max_steps=6", "trainer.save_every_steps=2", "name=run"]
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    train(prepared, tmp_path / "unbroken", *settings)
    interrupt = "import medsam3.trainer as t, medsam3.checkpoint as c; s = c.save_last\n"
    interrupt += "def once(*a):\n    s(*a)\n    raise KeyboardInterrupt\nt.save_last = once\n"
    interrupt += f"import sys, runpy; sys.argv = ['train.py', *{[*SMALL, *_data(prepared), *settings]!r}]\n"
    interrupt += f"runpy.run_path({str(ROOT / 'scripts/train.py')!r}, run_name='__main__')"
    stopped = subprocess.run([sys.executable, "-c", interrupt], cwd=tmp_path / "broken", capture_output=True, text=True)
    assert stopped.returncode == 130 and "run the same command again" in stopped.stderr
    assert len(losses(tmp_path / "broken/runs/run")) == 2
    done = train(prepared, tmp_path / "broken", *settings)
    assert "resumes at step 2" in done.stdout
    assert losses(tmp_path / "broken/runs/run") == losses(tmp_path / "unbroken/runs/run")
    whole, resumed = weights(tmp_path / "unbroken/runs/run"), weights(tmp_path / "broken/runs/run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_changed_configuration_is_refused_with_the_differing_keys(prepared, tmp_path):
    train(prepared, tmp_path, "name=run", "trainer.max_steps=1")
    done = train(prepared, tmp_path, "name=run", "trainer.max_steps=1", "optim.weight_decay=0.5", "seed=1", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "optim.weight_decay: 0.05 -> 0.5" in done.stderr and "seed: 42 -> 1" in done.stderr


def test_two_processes_take_the_step_of_one_process_with_both_batches(prepared, tmp_path):
    """Mean over two ranks with one image each = one rank that accumulates the two images.

    The box normaliser is averaged over ranks but not over accumulated batches, so the comparison needs equal counts: every image of
    the template holds three concepts with one instance each."""
    common = ["trainer.max_steps=2", "data.max_queries=3", "optim.schedule.warmup_steps=0"]
    train(prepared, tmp_path, *common, "name=two", processes=2)
    train(prepared, tmp_path, *common, "name=one", "trainer.accumulation_steps=2")
    assert losses(tmp_path / "runs/two") == pytest.approx(losses(tmp_path / "runs/one"), rel=1e-4)
    two, one = weights(tmp_path / "runs/two"), weights(tmp_path / "runs/one")
    assert max((two[name] - one[name]).abs().max().item() for name in one) < 1e-5
