"""Reading and writing checkpoint files: which file of a folder holds the weights, reading without running code.

Tensors are memory-mapped: nothing is in memory before it is used.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
RECORD = "training.json"  # what the weights were trained on: beside them, or in the metadata of their file
WEIGHT_FILES = (SAFETENSORS, INDEX, "pytorch_model.bin", "state.pt")  # in the order of preference
RUN_FOLDERS = ("best", "last")  # of a training run, in the order of preference
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
STATE_KEYS = ("model", "state_dict", "model_state_dict")  # under which a training checkpoint keeps the weights
NOT_WEIGHTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file"),
    (b"<", "it is a web page, as a download without access saves one: accept the licence on the model page, log in"),
)


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a checkpoint, as they are named in the file."""

    source: str  # what was read, for messages
    folder: Path | None  # that also holds config.json, perhaps tokenizer and processor
    tensors: dict[str, Tensor]  # memory-mapped
    record: str | None = None  # what they were trained on, as training wrote it

    @property
    def config(self) -> dict[str, Any] | None:
        """The content of config.json beside the weights, if there is one."""
        return read_json(self.folder / CONFIG) if self.folder else None


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError if the file does not hold a JSON object, OSError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download or write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def read_weights(path: Path) -> StoredWeights:
    """The tensors of a file, of a folder of transformers, or of a run of our own (its `best`, else its `last`).

    Raises:
        ValueError: no such file; none or several in a folder; not a checkpoint, damaged, or one that would run code.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    file, note = _weight_file(path) if path.is_dir() else (path, "")
    if file.name == INDEX:
        tensors, key = _read_shards(file), ""
    else:
        tensors, key = _read_file(file)
    folder = file.parent if (file.parent / CONFIG).is_file() else None
    return StoredWeights(f"{file}{f' [{key!r}]' if key else ''}{note}", folder, tensors, _record_of(file))


def read_record(path: Path) -> str | None:
    """What the weights of a file, folder or run were trained on, as training wrote it; None where nothing is known.

    Raises:
        ValueError: as `read_weights`.
    """
    return _record_of(_weight_file(path)[0] if path.is_dir() else path)


def _record_of(file: Path) -> str | None:
    """From the file's metadata, else from its folder, else (`last` of a run) from `best` beside it."""
    text: str | None = None
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(RECORD)
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            member = _record_member(archive)
            text = archive.read(member).decode() if member in archive.namelist() else None
    for folder in (file.parent, file.parent.parent / RUN_FOLDERS[0]) if file.name in WEIGHT_FILES else ():
        if text is None and (folder / RECORD).is_file():
            text = (folder / RECORD).read_text(encoding="utf-8")
    return text


def _record_member(archive: zipfile.ZipFile) -> str:
    """The record's name in a file of torch.save; torch itself leaves what lies under extra/ alone."""
    return f"{archive.namelist()[0].split('/')[0]}/extra/{RECORD}"


def _weight_file(folder: Path) -> tuple[Path, str]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name, ""
    runs = [name for name in RUN_FOLDERS if any((folder / name / file).is_file() for file in WEIGHT_FILES)]
    if runs:
        also = f"; {runs[1]} is there too" if len(runs) > 1 else ""
        return _weight_file(folder / runs[0])[0], f" ({runs[0]} of a run{also})"
    others = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(others) == 1:
        return others[0], " (the only weights in the folder)"
    content = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    problem = f"{len(others)} files that could be meant, name one" if others else "no weights"
    raise ValueError(
        f"{folder}: {problem} (it holds {content}). Looked for {', '.join(WEIGHT_FILES)}, and "
        f"{' or '.join(f'{name}/' for name in RUN_FOLDERS)} of a run"
    )


def _read_file(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the key under which they lay."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if head[8:9] == b"{":  # after the length of the header
        return _read_safetensors(file), ""
    for start, meaning in NOT_WEIGHTS:
        if head.lstrip().startswith(start):
            raise ValueError(f"{file}: {meaning} ({file.stat().st_size} bytes)")
    return _tensors_of(_read_pickle(file), file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(_damaged(file, error)) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = sorted(set(read_json(index).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent}: {name} is missing, one of the {len(files)} files that {INDEX} names")
        tensors |= _read_safetensors(index.parent / name)
    return tensors


def _read_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and archives: what matters is raised
            # Only the archive format can be mapped; files of before 2020 are read into memory.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        text = str(error)
        found = re.search(r"(?:GLOBAL|global:?|class|function) `?([\w.]+\.[\w.]+)", text)
        if found is None and not re.search("[Uu]nsupported", text):
            raise ValueError(_damaged(file, error)) from error
        raise ValueError(_refused(file, found[1] if found else "objects other than tensors")) from error
    except Exception as error:  # torch and pickle name no common class for what they cannot read
        if "TorchScript" in str(error):
            raise ValueError(_refused(file, "a TorchScript program")) from error
        raise ValueError(_damaged(file, error)) from error


def _refused(file: Path, what: str) -> str:
    return (
        f"{file}: refused, as reading it would run code stored in the file (it asks for {what}). Ask its author for "
        "safetensors or a plain state dict; or, if you trust it, re-save it on a machine without secrets: "
        "torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pt')"
    )


def _damaged(file: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"{file}: cannot be read as weights: truncated, or not a checkpoint ({file.stat().st_size} bytes; "
        f"{reason[:160]}). Download or copy it again and compare its size"
    )


def _tensors_of(content: Any, file: Path) -> tuple[dict[str, Tensor], str]:
    if isinstance(content, Mapping):
        for key in STATE_KEYS:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                content = inner
                break
        else:
            key = ""
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if len(tensors) == len(content) > 0:
            return tensors, key
        if tensors:
            others = [str(name) for name in content if name not in tensors]
            raise ValueError(f"{file}: tensors beside other things ({', '.join(others[:10])}): not a state dict")
    kind = f"a dict with {', '.join(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{file}: holds no tensors, at the top or under {', '.join(STATE_KEYS)} (it is {kind[:200]})")


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, record: str | None = None) -> None:
    """Write tensors, and in the metadata what they were trained on. Raises OSError if the disk is full."""
    metadata = {"format": "pt"} | ({} if record is None else {RECORD: record})
    try:
        # Contiguous tensors, disjoint views of one storage included, are written from where they lie.
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def write_state_dict(tensors: Mapping[str, Tensor], path: Path, record: str | None = None) -> None:
    """A flat file for torch.load, as Meta's sam3.pt is one, with the record of training as a further member of the
    archive, which torch.load does not look at. Raises OSError if the disk is full."""
    try:
        torch.save(dict(tensors), path)
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error
    if record is not None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_record_member(archive), record)
