"""The batch script on a cluster of stand-ins: two tasks, and a signal before the time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scripts import ENVIRONMENT, ROOT, SMALL

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & echo $! >> pids; done
status=0
for pid in $(jobs -p); do wait $pid || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ $1 = show ]; then echo 127.0.0.1; else echo "$*" >> scontrol.log; fi
"""


def logged(folder: Path) -> list[int]:
    path = folder / "run/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in lines if "loss/total" in line]


@pytest.mark.slow
def test_a_job_that_is_out_of_time_saves_and_is_queued_again(data, tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = ENVIRONMENT | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    settings = [*SMALL, *data, f"output_dir={tmp_path}/run", "trainer.exchange=bfloat16"]
    command = ["bash", str(ROOT / "scripts/slurm/train.sbatch"), *settings, "trainer.max_steps=12"]
    job = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 240
    while not logged(tmp_path) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.1)
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    assert job.wait(timeout=240) == 75
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
    done = logged(tmp_path)
    assert done == list(range(1, len(done) + 1)) and len(done) < 12
    assert (tmp_path / "run/last/state.pt").is_file()
