"""What a checkpoint has seen in training must not be evaluated without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsam3.data.corpus import Corpus

RECORD_FILE = "training.json"


def refuse_training_rows(checkpoint: str, corpus: Corpus, parts: dict[str, str]) -> None:
    """Stop an evaluation on rows that the checkpoint has seen in training.

    A checkpoint without a record (Meta's, or one converted from elsewhere) passes.

    Raises:
        ValueError: a data set is asked for by another part than its validation part, or was split differently in
            training.
    """
    record = _read_record(Path(checkpoint))
    if record is None:
        return
    for name, part in parts.items():
        if name not in record["splits"]:
            continue
        reason = ""
        if part != "val":
            reason = f"its part {part!r} was trained on"
        elif record["split_by"] != corpus.split_by:
            reason = f"it was split by {record['split_by']} in training and is split by {corpus.split_by} now"
        elif record["splits"][name] != corpus.split_hash(name):
            reason = f"its split file {corpus.split_file(name)} is not the one used in training (other hash)"
        if reason:
            raise ValueError(
                f"checkpoint={checkpoint} was trained on {name}: {reason}, so the numbers would not be honest. "
                "Use the same split (data.split.by, data.splits), or say allow_training_rows=true"
            )


def _read_record(checkpoint: Path) -> dict[str, Any] | None:
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for folder in (run, run / "best", run.parent / "best"):
        if (folder / RECORD_FILE).is_file():
            content: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            return content
    return None
