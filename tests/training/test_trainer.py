"""The training loop on the tiny model: every experiment takes a step, a resumed run equals the unbroken one, two
processes take the step of one process with both batches."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from medsam3 import distributed
from medsam3.data.corpus import open_corpus
from medsam3.training import trainer
from tests.scripts import ROOT, SMALL, run_script
from tests.scripts import train_template as train

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))


def weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(run / "last/state.pt", weights_only=True)[part]


def scalars(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path, name: str = "loss/total") -> list[float]:
    return [line[name] for line in scalars(run) if name in line]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_one_step(experiment, data, tmp_path):
    train(tmp_path, data, f"experiment={experiment}", "trainer.max_steps=1", "model.checkpoint=tiny")
    run = tmp_path / "runs" / experiment
    assert len(losses(run)) == 1
    assert {path.name for path in run.iterdir()} >= {"best", "last", "config.yaml", "environment.json", "metrics.jsonl"}


def interrupting(save):
    def interrupted(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    return interrupted


def test_a_resumed_run_equals_the_unbroken_one(data, tmp_path, monkeypatch):
    """Bit for bit, with everything that is drawn: pictures, words, absent concepts, order."""
    settings = ["trainer.max_steps=3", "trainer.accumulation_steps=2", "trainer.save_every_steps=2", "name=run"]
    settings += ["augmentation=by_modality", "data.absent_concepts=2", "data.hard_negatives=1", "data.synonyms=0.5"]
    settings += ["data.max_targets=crop", "data.max_repeats=2", "trainer.average_decay=0.9"]
    settings += ["model.regularisation.stochastic_depth=0.2"]
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    done = train(tmp_path / "unbroken", data, *settings)
    assert "sampling an image comes so many times in an epoch of 96: mni152 1 (96 images)" in done.stdout
    assert "masks    top1 chooses the best; the loss trains the masks of the semantic head" in done.stdout
    (present, hard, easy) = map(int, re.findall(r"asked: (\d+) present, (\d+) hard, (\d+) easy", done.stdout)[0])
    assert (present, hard + easy) == (18, 12) and hard >= 6  # six images of three concepts
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save", interrupting(trainer.save))
        stopped = train(tmp_path / "broken", data, *settings, check=False)
    assert stopped.returncode == 130 and "run the same command again" in stopped.stderr
    assert len(losses(tmp_path / "broken/runs/run")) == 2
    done = train(tmp_path / "broken", data, *settings)
    assert "resumes at step 2" in done.stdout
    assert losses(tmp_path / "broken/runs/run") == losses(tmp_path / "unbroken/runs/run")
    for name in ("asked/present", "asked/hard", "asked/easy", "validation_average/dice"):  # of the whole epoch
        assert losses(tmp_path / "broken/runs/run", name) == losses(tmp_path / "unbroken/runs/run", name) != []
    for part in ("model", "average"):
        whole, resumed = (weights(tmp_path / f"{kind}/runs/run", part) for kind in ("unbroken", "broken"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_of_several_processes_the_first_looks_through_the_folders_for_all(configure, monkeypatch):
    config = configure()
    first = open_corpus(config.data, "mni152").readers["mni152"]
    sent = pickle.dumps({"mni152": (first.index(), first.broken)})
    monkeypatch.setattr(distributed, "from_main", lambda compute: pickle.loads(sent))  # on another rank
    monkeypatch.setattr(type(first), "find", lambda self: pytest.fail("it looked itself"))
    corpus = open_corpus(config.data, "mni152")
    item = corpus.images("mni152", "train")[3].item
    assert corpus.readers["mni152"].item(item) == first.item(item)


def test_the_first_step_trains_both_halves_and_its_gradient_is_clipped(run):
    (line,) = [line for line in scalars(run) if "loss/total" in line]
    assert "loss_o2m/class" in line and line["gradient/norm"] > 1
    moments = torch.load(run / "last/state.pt", weights_only=True)["optimizer"]["state"].values()
    norm = math.sqrt(sum(moment["exp_avg"].square().sum().item() for moment in moments))
    assert norm == pytest.approx((1 - 0.9) * 0.1, rel=1e-3)  # (1 - beta1) of a gradient of norm clip_norm


def test_a_changed_configuration_is_refused_with_the_differing_keys(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "runs/run")
    done = train(tmp_path, data, "name=run", "trainer.max_steps=1", "optim.weight_decay=0.5", "seed=1", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "optim.weight_decay: 0.05 -> 0.5" in done.stderr and "seed: 42 -> 1" in done.stderr


@pytest.mark.slow
def test_a_compiled_checkpointed_accumulated_step_of_two_processes_is_the_plain_one(data, tmp_path):
    """Mean over two ranks with two images each = one rank that accumulates the four images.

    The box normaliser is averaged over ranks but not over accumulated batches, so the comparison needs equal counts:
    every image of the template holds three concepts with one instance each. Of compiling only the graphs are made, and
    of the ViT only: all parts, and inductor's kernels, take minutes.
    """
    driver = tmp_path / "compiled.py"
    driver.write_text(
        "import functools, runpy, torch\n"
        "torch.compile = functools.partial(torch.compile, backend='aot_eager')\n"
        f"runpy.run_path({str(ROOT / 'scripts/train.py')!r}, run_name='__main__')\n"
    )
    common = [*SMALL, *data, "trainer.max_steps=1", "data.max_queries=3", "optim.schedule.warmup=0"]
    other = ["model.compile=vision", "model.activation_checkpointing=all", "trainer.accumulation_steps=2"]
    run_script(str(driver), *common, *other, "name=two", cwd=tmp_path, processes=2)
    run_script("train.py", *common, "trainer.accumulation_steps=4", "name=one", cwd=tmp_path)
    for name in ("loss/total", "gradient/norm"):  # the norm before clipping, which hides a wrong scale
        assert losses(tmp_path / "runs/two", name) == pytest.approx(losses(tmp_path / "runs/one", name), rel=1e-4)
    two, one = weights(tmp_path / "runs/two"), weights(tmp_path / "runs/one")
    assert max((two[name] - one[name]).abs().max().item() for name in one) < 1e-5
