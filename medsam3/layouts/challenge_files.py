"""Files of the text-guided 3D segmentation challenge of CVPR 2025: one .npz per case in, one with `segs` out.

https://github.com/JunMa11/CVPR-MedSegFMCompetition. Shapes: D pictures of H x W px.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.files import new_file

KIND = "instance_label"  # beside the prompts: 0 a mask per prompt, 1 the single objects
IMAGES, TRUTH, ANSWER = "imgs", "gts", "segs"
HARMLESS = {  # what pickled prompts may be made of; anything else could run code
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("ndarray", "dtype", "scalar", "_reconstruct")
}
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


@dataclass(frozen=True)
class Case:
    pictures: NDArray[np.uint8]  # [D, H, W]
    spacing_mm: tuple[float, ...]  # as in the file; the challenge takes it in the order D, H, W
    prompts: dict[int, str]  # by the number of their label
    instances: bool  # single objects are asked for


def read_case(path: Path) -> Case:
    """
    Raises:
        ValueError: not a case of the challenge, damaged, values that are no picture of 8 bits; names the file and key.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            pictures, spacing = file[IMAGES], file["spacing"]
        words = _prompts(path)
    except BROKEN as error:
        raise ValueError(f"{path}: no case of the challenge ({error or type(error).__name__})") from error
    if pictures.ndim != 3 or not pictures.size or pictures.dtype.kind not in "uif":
        raise ValueError(f"{path}: imgs: {pictures.dtype} {list(pictures.shape)}: must be numbers [D, H, W]")
    if not (np.isfinite(pictures).all() and pictures.min() >= 0 and pictures.max() <= 255):
        raise ValueError(f"{path}: imgs: {pictures.min()} to {pictures.max()}: must be from 0 to 255")
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"{path}: spacing: {spacing.tolist()}: must be three positive numbers")
    instances, prompts = _told(path, words)
    return Case(np.rint(pictures).astype(np.uint8), tuple(spacing.astype(float).tolist()), prompts, instances)


def _prompts(path: Path) -> Any:
    """`text_prompts`: a dictionary that NumPy wrote with pickle, read without running what a pickle could hold."""
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("text_prompts.npy"))
    version = np.lib.format.read_magic(content)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if not header(content)[2].hasobject:
        raise ValueError("text_prompts is no dictionary")
    return np.asarray(_Dictionaries(content).load()).item()


class _Dictionaries(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"text_prompts holds {module}.{name}, which is no text")
        return super().find_class(module, name)


def _told(path: Path, words: Any) -> tuple[bool, dict[int, str]]:
    if not isinstance(words, Mapping) or int(words.get(KIND, -1)) not in (0, 1):
        raise ValueError(f"{path}: text_prompts: {words!r}: must map numbers to texts, and {KIND} to 0 or 1")
    prompts = {str(key): value for key, value in words.items() if key != KIND}
    wrong = [k for k, v in prompts.items() if not (k.isdecimal() and int(k) and isinstance(v, str) and v.strip())]
    if wrong or not prompts:
        raise ValueError(f"{path}: text_prompts: {wrong or 'none'}: must map numbers from 1 to texts")
    return bool(int(words[KIND])), {key: " ".join(prompts[str(key)].split()) for key in sorted(map(int, prompts))}


def read_labels(path: Path, key: str) -> NDArray[np.integer]:
    """[D, H, W] of `segs` or `gts`. ValueError: not there, or no whole numbers from 0."""
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file[key]
    except BROKEN as error:
        raise ValueError(f"{path}: {key}: cannot be read ({error or type(error).__name__})") from error
    if labels.ndim != 3 or labels.dtype.kind not in "uib" or (labels.size and labels.min() < 0):
        raise ValueError(f"{path}: {key}: {labels.dtype} {list(labels.shape)}: must be whole numbers [D, H, W] from 0")
    return labels


def write_labels(path: Path, labels: NDArray[np.integer]) -> None:
    """[D, H, W] as `segs`, in 8 bits where they suffice: the challenge reads no more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, ".npz") as temporary:
        np.savez_compressed(temporary, segs=labels.astype(np.min_scalar_type(int(labels.max(initial=0)))))
