"""One picture's results as files: a map of numbers with its legend, a mask per prompt, COCO, a picture of them.

A new kind of output is one function and one line of OUTPUTS. Shapes: H x W the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from medsam3.files import write_text
from medsam3.layouts.instances import Instances, Mask
from medsam3.prediction.answer import Prediction
from medsam3.prediction.jobs import RESULT, Picture
from medsam3.scans.picture_files import Shown

COCO = "coco.json"
BACKGROUND = "background"
COLOURS = (
    (230, 80, 40),
    (40, 150, 230),
    (60, 190, 80),
    (240, 190, 30),
    (170, 90, 220),
    (30, 190, 190),
    (240, 120, 180),
)
NAME_CHARACTERS = 40  # of a prompt, in the name of a file


@dataclass(frozen=True)
class Region:
    """A mask with a number of its own: of a prompt, or of one of its instances."""

    value: int  # in the map, from 1
    prompt_number: int  # from 1
    instance: int | None  # from 1, the highest score first; None: all of the prompt
    score: float
    part: Instances  # its mask as one crop; none: not found

    @property
    def area_px(self) -> int:
        return int(self.part.areas_px.sum())

    def windows(self) -> Iterator[tuple[tuple[slice, slice], Mask]]:
        """Where the crop lies, and the crop, so that a thousand small instances cost a large image nothing."""
        for (x0, y0, x1, y1), crop in zip(self.part.boxes_px.tolist(), self.part.crops, strict=True):
            yield (slice(y0, y1), slice(x0, x1)), crop


@dataclass(frozen=True)
class PictureResult:
    """What is written of one picture."""

    picture: Picture
    shown: Shown
    predictions: Sequence[Prediction]
    apart: bool

    def regions(self) -> Iterator[Region]:
        """One per prompt, found or not; with instances apart one per instance."""
        value = 0
        for number, prediction in enumerate(self.predictions, 1):
            parts: Iterable[tuple[int | None, float, Instances]] = (
                ((i, score, part) for i, (score, part) in enumerate(prediction.instances, 1))
                if self.apart
                else [(None, prediction.answer.score, Instances.whole(prediction.answer.mask))]
            )
            for instance, score, part in parts:
                value += 1
                yield Region(value, number, instance, score, part)

    def described(self, region: Region) -> dict[str, Any]:
        prompt = self.predictions[region.prompt_number - 1].concept
        instance = {} if region.instance is None else {"instance": region.instance}
        return {"prompt": prompt, **instance, "score": region.score, "area_px": region.area_px}


def write_index(result: PictureResult, folder: Path) -> None:
    """index.png, 0 and the numbers of the regions, in 16 bits where there are more than 255; legend.json.

    Instances of a prompt that overlap: the pixel goes to the highest score.
    """
    height, width = result.shown.pixels.shape[:2]
    numbers = np.zeros((height, width), np.uint16)
    legend: dict[str, Any] = {"0": {"prompt": BACKGROUND}}
    for region in result.regions():
        for window, crop in region.windows():
            numbers[window][crop & (numbers[window] == 0)] = region.value
        legend[str(region.value)] = result.described(region)
    if len(legend) > 2**16:
        raise ValueError(f"{len(legend) - 1} regions: more than 16 bits can number; ask fewer prompts at once")
    narrow = len(legend) <= 2**8
    Image.fromarray(numbers.astype(np.uint8) if narrow else numbers).save(folder / "index.png")
    write_text(folder / "legend.json", json_text(legend))


def write_masks(result: PictureResult, folder: Path) -> None:
    """masks/<number>_<prompt>.png, or <number>_<prompt>_<instance>.png: 0 and 255."""
    (folder / "masks").mkdir()
    for region in result.regions():
        name = f"{region.prompt_number}_{file_name(result.predictions[region.prompt_number - 1].concept)}"
        name += "" if region.instance is None else f"_{region.instance}"
        Image.fromarray(region.part.union().astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")


def write_annotations(result: PictureResult, folder: Path) -> None:
    """This picture's part of coco.json, which is put together at the end: run lengths of what was found."""
    annotations = []
    for region in result.regions():
        for (x0, y0, x1, y1), crop in zip(region.part.boxes_px.tolist(), region.part.crops, strict=True):
            bbox = [float(value) for value in (x0, y0, x1 - x0, y1 - y0)]
            encoded = run_lengths(crop, (y0, x0), region.part.size)
            annotations.append({**result.described(region), "segmentation": encoded, "bbox": bbox})
    write_text(folder / "annotations.json", json_text(annotations))


def write_overlay(result: PictureResult, folder: Path) -> None:
    """overlay.png: the regions in colour over the picture, at its size, and below it what each colour means."""
    pixels = result.shown.pixels.copy()
    for region in result.regions():
        shade = region.prompt_number if region.instance is None else region.value
        for window, crop in region.windows():
            pixels[window][crop] = 0.55 * pixels[window][crop] + 0.45 * np.asarray(_colour(shade), np.float32)
    lines = [
        (number, f"{p.concept}   {f'score {p.answer.score:.2f}' if p.answer.mask.any() else 'not found'}")
        for number, p in enumerate(result.predictions, 1)
    ]
    height, width = pixels.shape[:2]
    canvas = Image.new("RGB", (max(width, 320), height + 20 * len(lines) + 4), "white")
    canvas.paste(Image.fromarray(pixels))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for row, (number, text) in enumerate(lines):
        top = height + 20 * row + 4
        draw.rectangle((4, top + 2, 14, top + 12), fill="white" if result.apart else _colour(number), outline="black")
        draw.text((22, top), text, fill="black", font=font)
    canvas.save(folder / "overlay.png", compress_level=1)  # two thirds of the time, 1.1 of the size


def run_lengths(crop: Mask, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask of `size` (H, W) that is empty but for a crop at `corner` (y, x).

    They go column by column; the mask at full size is never made.
    """
    height, width = size
    steps = np.diff(np.pad(crop.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # of a column 1: begins, -1: has ended
    places = map(np.nonzero, (steps > 0, steps < 0))
    ends = [(columns + corner[1]) * height + rows + corner[0] for columns, rows in places]
    change = np.stack(ends, axis=1).ravel()  # begins and ends in turn
    apart = np.flatnonzero(change[2::2] > change[1:-1:2])  # a run that goes on in the next column is one
    begins = np.concatenate([change[:1], change[2::2][apart]])
    stops = np.concatenate([change[1:-1:2][apart], change[-1:]])
    counts = np.diff(np.concatenate([[0], np.stack([begins, stops], axis=1).ravel(), [height * width]]))
    counts = counts[: len(counts) - (counts[-1] == 0)]
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


OUTPUTS: dict[str, Callable[[PictureResult, Path], None]] = {
    "index": write_index,
    "masks": write_masks,
    "coco": write_annotations,
    "overlays": write_overlay,
}


def write_coco(output: Path, folders: Sequence[tuple[Path, Path]]) -> list[str]:
    """coco.json of all pictures of an output folder; returns those that the one before held and this one does not.

    Args:
        folders: file and result folder of each picture, in the order of their numbers.
    """
    try:
        before = [image["file_name"] for image in json.loads((output / COCO).read_text(encoding="utf-8"))["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        before = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for number, (path, folder) in enumerate(folders, 1):
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        images.append(
            {"id": number, "file_name": path.as_posix(), "width": result["width"], "height": result["height"]}
        )
        for prompt in result["prompts"]:
            categories.setdefault(prompt["prompt"], len(categories) + 1)
        for entry in json.loads((folder / "annotations.json").read_text(encoding="utf-8")):
            numbers = {"id": len(annotations) + 1, "image_id": number, "category_id": categories[entry.pop("prompt")]}
            annotations.append({**numbers, "iscrowd": 0, "area": entry.pop("area_px"), **entry})
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    write_text(output / COCO, json_text({"images": images, "categories": listed, "annotations": annotations}))
    kept = {image["file_name"] for image in images}
    return [name for name in before if name not in kept]


def file_name(prompt: str) -> str:
    """A prompt as part of a file's name on every system."""
    return "".join(c if c.isalnum() else "_" for c in prompt)[:NAME_CHARACTERS]


def json_text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[(number - 1) % len(COLOURS)]
