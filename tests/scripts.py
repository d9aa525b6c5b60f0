"""Running the scripts as a user does, on the MNI152 template and the tiny model at 56 px."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch

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
        processes: of its own, as torchrun starts them; 0: in this process.
    """
    path = str(ROOT / "scripts" / script)
    done = _run_ranks(path, overrides, cwd, processes) if processes else _run_here(path, overrides, cwd)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _run_ranks(path: str, overrides: tuple[str, ...], cwd: Path, count: int) -> subprocess.CompletedProcess[str]:
    """In processes forked from one that has imported the libraries, which takes longer than what they do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medsam3.training.trainer", "medsam3.evaluation.measurement", __name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    ranks = [
        context.Process(target=_run_rank, args=(path, overrides, cwd, rank, count, port, pipe))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process, (_, pipe) in zip(ranks, pipes, strict=True):
        process.start()
        pipe.close()  # a process that dies is then an end of file here
    done = [receiver.recv() for receiver, _ in pipes]
    for process in ranks:
        process.join()
    return subprocess.CompletedProcess(
        [path, *overrides],
        max(one.returncode for one in done),
        "".join(one.stdout for one in done),
        "".join(one.stderr for one in done),
    )


def _run_rank(
    path: str, overrides: tuple[str, ...], cwd: Path, rank: int, count: int, port: int, pipe: Connection
) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in own.items()}}
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for what the script starts, as ever on Linux
    pipe.send(_run_here(path, overrides, cwd))


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
