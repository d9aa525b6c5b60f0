"""The masks of a study at a threshold as one archive, in the formats that the command writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.demo.study import RULE, Study
from medsam3.files import write_text
from medsam3.prediction.answer import Answer, Prediction
from medsam3.prediction.jobs import Picture
from medsam3.prediction.outputs import PictureResult, file_name, json_text, write_masks, write_overlay
from medsam3.prediction.volume_outputs import NIFTI, results_ending, write_scan_results
from medsam3.scans.scan import Scan


def archive(study: Study, threshold: float, place: Path, model: str, weights: str) -> Path:
    """masks_<name>.zip in the folder `place`, instead of what is there: prediction.json and, of a picture, a PNG per
    prompt and an overlay; of a volume, one per prompt with its format and geometry; of DICOM, a segmentation.

    Args:
        model: what is said of the checkpoint.
        weights: hash of its weights.

    Raises:
        ValueError: the model was not asked yet.
    """
    if not study.layers:
        raise ValueError("there are no masks yet: segment first")
    prompts = list(study.layers)
    masks = {prompt: [layer.mask(threshold) for layer in layers] for prompt, layers in study.layers.items()}
    said: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "found": any(mask.any() for mask in masks[prompt]),
            "score": max(layer.score for layer in layers),
            **({"presence": max(layer.presence or 0.0 for layer in layers)} if study.tracked_at is None else {}),
            "slice_scores": [round(layer.score, 6) for layer in layers],
        }
        for prompt, layers in study.layers.items()
    ]
    shutil.rmtree(place)
    folder = place / "files"
    folder.mkdir(parents=True)
    if isinstance(study.source, Scan):
        volume, seg = np.asarray(list(masks.values())), "BINARY"
        try:
            results_ending(study.source, seg)
        except ValueError:  # images that no segmentation can refer to
            seg = NIFTI
        write_scan_results(folder, study.source, volume, prompts, ["masks"], weights, seg)
    else:
        predictions = [
            Prediction(entry["prompt"], entry["presence"], {RULE: Answer(entry["score"], masks[entry["prompt"]][0])})
            for entry in said
        ]
        picture = Picture(Path(study.name), tuple(prompts), folder, folder)
        result = PictureResult(picture, study.source, predictions, apart=False)
        write_masks(result, folder)
        write_overlay(result, folder)
    threshold = threshold if study.tracked_at is None else study.tracked_at
    record = {
        "input": study.name,
        "threshold": threshold,
        "followed": study.tracked_at is not None,
        "model": model,
        "weights_sha256": weights,
        "prompts": said,
    }
    write_text(folder / "prediction.json", json_text(record))
    named = place / f"masks_{file_name(Path(study.name).stem)}"
    try:
        return Path(shutil.make_archive(str(named), "zip", folder))
    finally:
        shutil.rmtree(folder)
