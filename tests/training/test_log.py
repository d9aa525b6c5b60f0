"""metrics.jsonl and events.jsonl."""

from __future__ import annotations

import json
import resource

import pytest

from medsam3.training.log import RunLog
from tests.training.test_survival import lines


@pytest.mark.parametrize("validated", [False, True])
def test_lines_of_the_end_count_only_with_the_state_that_has_them(validated, configure, tmp_path):
    end = [{"step": 8, name: 1.0} for name in ("loss/total", "asked/present", "validation/dice", "check/best_dice")]
    rows = [{"step": 7, "check/best_dice": 0.5}, *end, {"step": 9, "loss/total": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    log = RunLog(tmp_path, "run", configure().wandb, {}, step=8, validated=validated)
    log.close()
    assert lines(tmp_path) == (rows[:5] if validated else rows[:2])
    assert log.ends_with("check/best_dice") == validated


def test_an_event_for_which_there_is_no_room_leaves_those_before_it_whole(configure, tmp_path):
    log = RunLog(tmp_path, "run", configure().wandb, {}, step=0)
    log.event("started", 0, {})
    before = (tmp_path / "events.jsonl").read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
    try:
        log.event("stopped", 1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert (tmp_path / "events.jsonl").read_text() == before
