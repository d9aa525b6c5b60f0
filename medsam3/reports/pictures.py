"""Pictures of predictions beside the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsam3.layouts.instances import Mask

TRUTH_COLOUR = (40, 200, 80)
PREDICTION_COLOUR = (255, 120, 30)
PANEL_PX = 320  # longest side of a panel in an overlay picture
GAP_PX, HEAD_PX, FOOT_PX = 8, 20, 24  # between panels, above and below them


def overlay_name(dataset: str, item: str, concept: str) -> str:
    """The file name of an overlay picture; two items whose names differ only by / and _ share one."""
    return f"{dataset}_{item}_{concept}.png".replace("/", "_").replace(" ", "_")


def overlay(image: np.ndarray, truth: Mask, prediction: Mask, caption: str) -> Image.Image:
    """Three panels side by side: the image, the truth in green, the prediction in orange; the caption below.

    Args:
        image: [H, W, 3] uint8.
        truth, prediction: [H, W].
    """
    panels = [_panel(image, None, ()), _panel(image, truth, TRUTH_COLOUR), _panel(image, prediction, PREDICTION_COLOUR)]
    width, height = panels[0].size
    labels = ("image", "truth", "prediction")
    canvas = Image.new("RGB", (3 * width + 2 * GAP_PX, height + HEAD_PX + FOOT_PX), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        canvas.paste(panel, (i * (width + GAP_PX), HEAD_PX))
        draw.text((i * (width + GAP_PX), 2), label, fill="black", font=font)
    draw.text((0, height + FOOT_PX), caption, fill="black", font=font)
    canvas.info["comment"] = caption.encode()  # for those who show the panels alone: JPEG files keep it
    return canvas


def overlay_panels(path: Path) -> list[Image.Image] | None:
    """The image, the truth and the prediction of a picture that `overlay` made; None if there is none."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        width, height = (picture.width - 2 * GAP_PX) // 3, picture.height - HEAD_PX - FOOT_PX
        lefts = [i * (width + GAP_PX) for i in range(3)]
        return [picture.convert("RGB").crop((left, HEAD_PX, left + width, HEAD_PX + height)) for left in lefts]


def _panel(image: np.ndarray, mask: Mask | None, colour: tuple[int, ...]) -> Image.Image:
    scale = PANEL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    if mask is not None:
        covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 100
        pixels[covered] = 0.55 * pixels[covered] + 0.45 * np.asarray(colour, dtype=np.float32)
    return Image.fromarray(pixels.astype(np.uint8))
