"""How scripts start and fail: one message for all processes, a folder for each job, a hint at foreign errors."""

from __future__ import annotations

import json
import sys

import pytest
import torch.distributed as dist

from medsam3.command_line import run_script
from medsam3.config import TrainConfig, register_schemas
from tests.scripts import ROOT


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs a job with the configuration of scripts/train.py; returns the exit status."""
    register_schemas()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDSAM3_TRACEBACK", "0")

    def run(job, *overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        try:
            run_script("train", TrainConfig, job)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_the_jobs_of_a_multirun_get_folders_of_their_own(start, capsys):
    folders: list[str] = []
    assert start(lambda config: folders.append(config.output_dir), "--multirun", "seed=1,2", "name=sweep") == 0
    assert folders == ["runs/sweep/0", "runs/sweep/1"]
    folders.clear()
    assert start(lambda config: folders.append(config.output_dir), "--multirun", "name=a,b") == 0
    assert folders == ["runs/a", "runs/b"]


def test_a_multirun_under_torchrun_is_refused_in_one_line(start, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert start(lambda config: None, "--multirun", "seed=1,2") == 2
    assert "error: --multirun does not go with torchrun" in capsys.readouterr().err


def test_an_error_of_all_processes_is_said_once_and_left_for_torchrun(start, monkeypatch, capsys, tmp_path):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    said = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"error{rank}.json"))
        assert start(lambda config: None, "trainer.epochs=0") == 2
        said.append(capsys.readouterr().err)
    assert said == ["error: trainer.epochs=0: must be greater than 0 (said by rank 1)\n", ""]
    assert json.loads((tmp_path / "error1.json").read_text())["message"]["message"] == said[0].strip()
    assert not (tmp_path / "error0.json").exists()


def test_a_lost_connection_is_one_line_under_torchrun_and_a_traceback_elsewhere(start, monkeypatch, capsys):
    def lost(config):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:3")

    with pytest.raises(RuntimeError):
        start(lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert start(lost) == 2
    assert capsys.readouterr().err.startswith("error: the connection to another process of this run was lost")


def test_an_error_of_a_library_says_how_to_see_where_and_one_of_ours_does_not(start, capsys):
    assert start(lambda config: json.loads("{")) == 2
    assert "(JSONDecodeError of decoder.py; MEDSAM3_TRACEBACK=1 before the command" in capsys.readouterr().err
    assert start(lambda config: None, "name=a,b=c") == 2
    assert "hydra.cc" not in (said := capsys.readouterr().err) and "need quotes of their own" in said
    assert start(lambda config: None, "trainer.epochs=0") == 2
    assert "MEDSAM3_TRACEBACK" not in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_script_checks_its_configuration_before_the_long_imports(script):
    """Ctrl-C and a typo in the first seconds then end in one line."""
    text = (ROOT / "scripts" / script).read_text()
    top = [line for line in text.splitlines() if line.startswith(("from ", "import "))]
    assert all(line.startswith(("from medsam3.command_line", "from medsam3.config")) for line in top)
