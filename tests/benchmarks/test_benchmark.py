"""The benchmark script: every command measures and prints a table; mistakes are one message."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from medsam3.benchmarks.loader import interleaved
from medsam3.benchmarks.scale import proportional_set_size, sampling_shares
from tests.conftest import ROOT, save_picture
from tests.scripts import run_script


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and [len(values) for values in times.values()] == [3, 3]


def test_shares_follow_the_rule_of_the_weights(tmp_path):
    shares = {(share.weights, share.name): share for share in sampling_shares({"ravir": 4, "drive": 100}, tmp_path)}
    assert (shares["size", "ravir"].drawn, shares["size", "drive"].drawn) == (4, 100)
    assert shares["uniform", "ravir"].drawn == shares["uniform", "drive"].drawn == 52
    # square roots 2 and 10: a sixth of 104
    assert abs(shares["sqrt", "ravir"].drawn - 104 / 6) < 1 and shares["sqrt", "ravir"].different == 4


def test_proportional_set_size_grows_by_what_a_process_has_for_itself():
    before = proportional_set_size([os.getpid()])
    own = np.ones(200_000_000, np.uint8)
    grown = proportional_set_size([os.getpid()]) - before
    assert 0.9 * own.nbytes < grown < 1.1 * own.nbytes  # the rest of the process is smaller than the tenth
    with pytest.raises(ValueError, match="/proc/0/smaps_rollup: not there"):
        proportional_set_size([0])


def test_loading_of_an_image_and_its_mask(tmp_path):
    mask = np.zeros((80, 100), bool)
    mask[10:50, 20:60] = True
    image = save_picture(tmp_path / "i.jpg", np.random.RandomState(0).randint(0, 256, (80, 100, 3)).astype(np.uint8))
    files = [f"--image={image}", f"--mask={save_picture(tmp_path / 'm.png', mask)}"]
    options = ("--image-size=560", "--repeats=1", f"--record={tmp_path / 'page.md'}")
    done = run_script("benchmark.py", "loader", *files, *options, cwd=tmp_path)
    assert "1 of 100 x 80 to 100 x 80 px, 1.0 masks each" in done.stdout
    assert re.search(r"training sample \| [\d.]+ \| \*\*[\d.]+\*\* times .* \*\*[\d.]+ images/s on a core", done.stdout)
    # 560 * 560 * 3 bytes of pixels, and a mask of half the height and less than half the width in bits
    assert "bytes of a sample |  | **0.95 MB**" in done.stdout
    title, _, page = (tmp_path / "page.md").read_text().lstrip().partition("\n\n")
    assert re.match(r"## \d{4}-\d\d-\d\d: `loader --image=", title) and page == done.stdout
    done = run_script("benchmark.py", "loader", files[0], cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, "error: --image needs --mask FILE beside it\n")


def test_the_loss_beside_that_of_a_checkout(tmp_path):
    cases = ("--cases", "2x3", "--image-size=56", "--repeats=1", "--device=cpu", f"--against={ROOT}")
    done = run_script("benchmark.py", "loss", *cases, cwd=tmp_path)
    assert len(re.findall(r"\| \w+, 2x3 \| \*\*[\d.]+\*\* \| [\d.]+ \| [\d.]+ \| 0 \| 0 \|", done.stdout)) == 2
    done = run_script("benchmark.py", "loss", *cases[:-1], "--against=.", cwd=tmp_path, check=False)
    assert done.stderr == "error: --against .: no medsam3/training/losses.py nor medsam3/losses.py there\n"


def test_one_image_with_all_queries_or_as_many_images(tmp_path):
    done = run_script("benchmark.py", "concepts", "--image-size=56", "--queries=3", "--repeats=1", cwd=tmp_path)
    assert "tiny, 56 px, ms of CPU: one image with 3 queries | 3 images with one |" in done.stdout
    one, many, ratio = re.search(r"\| (\d+) \| (\d+) \| \*\*([\d.]+)\*\* \|", done.stdout).groups()
    assert float(ratio) == pytest.approx(int(many) / int(one), rel=0.1)


def test_a_small_manifest(tmp_path):
    done = run_script("benchmark.py", "manifest", "--rows=4000", "--samples=640", "--workers=1", cwd=tmp_path)
    assert "4,000 rows, 2,000 images" in done.stdout
    assert re.search(r"added per worker \| \*\*\d+ MB\*\*", done.stdout)


def test_a_step_of_the_tiny_model(tmp_path):
    done = run_script(
        "benchmark.py", "step", "--model=tiny", "--image-size=56", "--steps=2", "device=cpu", cwd=tmp_path
    )
    assert "| tiny, 56 px, device=cpu | measured on cpu | planned for h100 |" in done.stdout
    assert re.search(r"images per second \| \*\*[\d.]+\*\* \| [\d.]+ \|", done.stdout)
    assert re.search(r"kernels of a step \| not counted \| \d,\d{3} \|", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_where_the_time_of_an_evaluation_goes(tmp_path, shared_realdata):
    some = [f"--data-root={shared_realdata}", "--images=2", "--image-size=56", "--workers=0"]
    done = run_script("benchmark.py", "evaluate", "--dataset", "drive", *some, cwd=tmp_path)
    assert "| ms per image | reading | encoder | decoder | rules | metrics |" in done.stdout
    for metrics in ("dice, iou", "dice, iou, nsd, hd95"):
        (row,) = re.findall(rf"\| DRIVE, {metrics} \|(.*)\|", done.stdout)
        *shares, total = (float(cell.strip("* ")) for cell in row.split("|"))
        assert min(shares[:5]) > 0 and sum(shares) == pytest.approx(total, abs=0.5)


def test_an_evaluation_of_many_queries(tmp_path):
    done = run_script("benchmark.py", "queries", "--queries", "400", cwd=tmp_path)
    assert re.search(r"\| 400 \| 200 \| \d+ s \| 0 MB \| \d+ MB \| \*\*\d+ MB\*\* \|", done.stdout)
