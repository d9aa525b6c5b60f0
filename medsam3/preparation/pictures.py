"""A sheet of what was read of a data set, images beside their masks, for what no check can find: masks that lie beside
their object, are inverted or of another concept; images too dark to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medsam3.files import new_file
from medsam3.layouts.instances import Instances
from medsam3.layouts.reader import Item, Reader
from medsam3.registry.spec import UNION

COLUMNS, PANEL_PX, GAP_PX, LINE_PX = 3, 280, 10, 16
LINES = 3  # below an image and its masks
COLOURS = ((0, 110, 210), (214, 40, 40), (20, 140, 50), (160, 60, 190), (200, 110, 0), (0, 140, 140), (200, 30, 120))
GREY = (120, 120, 120)
Line = list[tuple[str, tuple[int, ...]]]  # words and their colours


def chosen(item: NDArray[np.integer], concept: NDArray[np.integer], items: int, count: int) -> list[int]:
    """Numbers of the items to show, at most `count`: for each concept one in the middle of those that hold it, then
    some evenly spread over those that hold any; over all where none does.

    Args:
        item, concept: of each pair of an item and a concept that it holds, by number.
        items: how many there are.
    """
    held = [item[concept == number] for number in np.unique(concept)]
    pool = np.unique(item) if len(item) else np.arange(items)
    spread = pool[np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)]
    wanted = dict.fromkeys(int(number) for number in (*(own[len(own) // 2] for own in held), *spread))
    return sorted(list(wanted)[:count])


def write_sheet(path: Path, reader: Reader, items: Sequence[Item], total: int) -> None:
    """Each image beside the same with its masks: a colour for a concept, an outline for an instance.

    Args:
        total: items of the data set.

    Raises:
        ValueError: an item that cannot be read.
    """
    width, height = 2 * PANEL_PX + 3 * GAP_PX, PANEL_PX + LINES * LINE_PX + GAP_PX
    rows, columns = -(-len(items) // COLUMNS), min(COLUMNS, len(items))
    sheet = Image.new("RGB", (columns * width, rows * height + LINE_PX + GAP_PX), "white")
    title = f"{reader.spec.title}: {len(items)} of {total} images and their masks, as they are read"
    _write(sheet, (GAP_PX, 4), [(title, (0, 0, 0))])
    for number, item in enumerate(items):
        row, column = divmod(number, COLUMNS)
        _draw(sheet, (column * width + GAP_PX, row * height + LINE_PX + GAP_PX), reader, item)
    with new_file(path, path.suffix) as temporary:
        sheet.save(temporary)


def _draw(sheet: Image.Image, corner: tuple[int, int], reader: Reader, item: Item) -> None:
    image, masks = reader.image(item), reader.masks(item)
    union = reader.spec.concepts.get(UNION)
    masks = dict(sorted(masks.items(), key=lambda entry: entry[0] != union))  # painted below its parts
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(reader.spec.concept_names)}
    left, top = corner
    sheet.paste(_panel(image), corner)
    sheet.paste(_panel(_painted(image, masks, colours)), (left + PANEL_PX + GAP_PX, top))
    words: Line = [(f"{name} ({len(found)})", colours[name]) for name, found in masks.items() if len(found)]
    words += [(f"no {name}", GREY) for name, found in masks.items() if not len(found)]
    for number, line in enumerate(_lines(words, [(item.id, (0, 0, 0))])):
        _write(sheet, (left, top + PANEL_PX + number * LINE_PX), line)


def _painted(
    image: NDArray[np.uint8], masks: Mapping[str, Instances], colours: Mapping[str, tuple[int, ...]]
) -> NDArray[np.uint8]:
    pixels = image.astype(np.float32)
    edge = 2 * max(1, round(max(image.shape[:2]) / PANEL_PX)) + 1  # so that an outline is seen when the panel is made
    for name in sorted(masks, key=lambda name: -int(masks[name].areas_px.sum())):  # the small ones on top
        colour = np.asarray(colours[name], np.float32)
        for (x0, y0, x1, y1), crop in zip(masks[name].boxes_px.tolist(), masks[name].crops, strict=True):
            part = pixels[y0:y1, x0:x1]
            inner = ndimage.minimum_filter(crop, edge, mode="constant")
            part[inner] = 0.65 * part[inner] + 0.35 * colour
            part[crop & ~inner] = colour
    return np.rint(pixels).astype(np.uint8)


def _panel(pixels: NDArray[np.uint8]) -> Image.Image:
    scale = PANEL_PX / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def _lines(words: Line, first: Line) -> list[Line]:
    """The words below the first line, as many to a line as it holds; what is too much ends in dots."""
    lines = [first, []]
    for text, colour in words:
        used = sum(_length(f"{known}  ") for known, _ in lines[-1])
        if lines[-1] and used + _length(text) > 2 * PANEL_PX - LINE_PX:
            if len(lines) == LINES:
                lines[-1].append(("...", GREY))
                break
            lines.append([])
        lines[-1].append((text, colour))
    return lines


def _write(sheet: Image.Image, place: tuple[int, int], line: Line) -> None:
    left, top = place
    for text, colour in line:
        ImageDraw.Draw(sheet).text((left, top), text, fill=colour, font=_font())
        left += round(_length(f"{text}  "))


def _length(text: str) -> float:
    return _font().getlength(text)


@cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
