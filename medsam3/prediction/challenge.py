"""Cases of the CVPR 2025 text-guided 3D challenge: `predict.py format=cvpr2025`. Shapes: D pictures of H x W px."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from medsam3.files import file_hash
from medsam3.layouts.challenge_files import Case, read_case, write_labels
from medsam3.layouts.pixels import grey_to_rgb
from medsam3.prediction.segmentation import FAILURES, Run
from medsam3.prediction.volume_predictor import VolumePredictor

MOST_IN_8_BITS = 255


def find_cases(entry: Any) -> list[Path]:
    """The .npz files of a file, folder or pattern, or of a list of these. ValueError if there is none."""
    found: list[Path] = []
    for one in entry if isinstance(entry, list) else [entry]:
        path = Path(one)
        found += [path] if path.is_file() else sorted(path.glob("*.npz")) if path.is_dir() else []
        found += [] if path.exists() else sorted(Path(name) for name in glob.glob(one))
    names = [path.name for path in found]
    if not found or any(path.suffix != ".npz" for path in found) or len(set(names)) < len(names):
        raise ValueError(f"input={entry}: must be cases of the challenge, .npz files of different names")
    return found


def segment_cases(cases: list[Path], folder: Path, volumes: VolumePredictor, run: Run) -> None:
    """Write `<folder>/<name of the case>.npz` for each; `run` tells what became of it."""
    for path in tqdm(cases, unit="case", disable=not cases, leave=False, mininterval=2):
        try:
            case = read_case(path)
            labels, said = answer(case, volumes)
            write_labels(folder / path.name, labels)
            place = {"input": path.as_posix(), "sha256": file_hash(path), "folder": (folder / path.name).as_posix()}
            run.pictures.append({**place, "resumed": False, "instances": case.instances, **said})
        except FAILURES as error:
            words = str(error) or type(error).__name__
            run.failures.append({"input": path.as_posix(), "error": words.removeprefix(f"{path}: ")})


def answer(case: Case, volumes: VolumePredictor) -> tuple[NDArray[np.integer], dict[str, Any]]:
    """Labels [D, H, W], and what is said of them: a voxel that several prompts claim goes to the surest.

    Where single objects are asked for, they are the connected parts (by faces, as the challenge takes them) of each
    prompt's mask, numbered through.
    """
    pictures = [grey_to_rgb(picture) for picture in case.pictures]
    words = list(case.prompts.values())
    if len(set(words)) < len(words):
        raise ValueError("text_prompts: a text twice")
    found = volumes.predict(pictures, words, spacing_mm=case.spacing_mm).prediction
    labels = np.zeros(case.pictures.shape, np.int32)
    said = []
    for number, text, mask, scores in zip(case.prompts, words, found.resolved(words), found.scores, strict=True):
        parts, count = ndimage.label(mask) if case.instances else (mask * number, int(mask.any()))
        labels[mask] = parts[mask] + (labels.max() if case.instances else 0)
        said.append({"prompt": text, "label": number, "found": bool(mask.any()), "parts": count})
        said[-1] |= {"score": float(scores.max()), "slice_scores": [round(float(score), 6) for score in scores]}
    many = labels.max() > MOST_IN_8_BITS
    notes = [f"{labels.max()} numbers: the challenge reads 8 bits, and those above 255 wrap"] if many else []
    return labels, {"notes": notes, "prompts": said}
