"""Outlines measured in other processes: the same values and errors as in this one."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from medsam3.evaluation.outline_workers import OutlineWorkers
from medsam3.metrics.masks import METRICS, MaskPair
from tests.layouts.test_packed_masks import random_masks

NAMES = ["dice", "hd95", "nsd"]


def test_processes_give_the_values_of_this_one_and_none_is_left_behind():
    size = (33, 65)
    pairs = zip(*(random_masks(np.random.default_rng(seed), 12, size) for seed in (0, 1)), strict=True)
    masks = [MaskPair(*pair, (0.5, 2.0)) for pair in pairs]
    with OutlineWorkers(NAMES, 2) as workers:
        found = [future.result() for future in [workers.submit(pair) for pair in masks]]
        processes = workers._processes
        assert 1 <= len(processes) <= 2
    assert found == [{name: METRICS[name].of(pair) for name in NAMES[1:]} for pair in masks]
    assert found == [OutlineWorkers(NAMES, 0).submit(pair).result() for pair in masks]
    assert all(process.returncode == 0 for process in processes)


def test_an_error_in_a_process_is_an_error_here_and_so_is_its_death():
    pair = MaskPair(np.ones((2, 3), bool), np.ones((2, 3), bool))
    with OutlineWorkers(NAMES, 1) as workers:
        wrong = workers.submit(MaskPair(pair.prediction, pair.truth, (1.0, -1.0)))
        with pytest.raises(ValueError, match=r"spacing=\[1.0, -1.0\]: must be 2 positive numbers"):
            wrong.result()
        assert workers.submit(pair).result() == {"hd95": 0.0, "nsd": 1.0}  # it goes on
        os.kill(workers._processes[0].pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r"ended with status -9.*evaluation\.workers"):
            workers.submit(pair).result()


def test_nothing_is_started_where_no_outlines_are_asked_for():
    with OutlineWorkers(["dice"], 2) as workers:
        assert not workers.names and workers.ahead == 0 and workers._threads is None
