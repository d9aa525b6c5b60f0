"""What the page shows of a study, as HTML that holds its picture: no file of it is left for others to ask for."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from medsam3.demo.study import Layers, Study
from medsam3.prediction.outputs import COLOURS

WIDEST = 1024  # px of the longer side shown; masks are downloaded at full size


def figure(study: Study, index: int, threshold: float, opacity: float) -> str:
    """A picture of the study with its masks in colour."""
    pixels = study.picture(index)
    height, width = pixels.shape[:2]
    step = max(1, -(-max(height, width) // WIDEST))
    shown = np.asarray(Image.fromarray(pixels).reduce(step), np.float32)
    for number, layers in enumerate(study.layers.values()):
        mask = layers[index].mask(threshold)[::step, ::step]
        shown[mask] = (1 - opacity) * shown[mask] + opacity * np.asarray(COLOURS[number % len(COLOURS)], np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(shown).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    tall, wide = study.pixel_mm or (1.0, 1.0)
    place = f", slice {index + 1} of {len(study)}" if len(study) > 1 else ""
    small = f", shown at 1/{step} of its size" if step > 1 else ""
    return (
        f'<figure class="picture"><img alt="{escape(study.name)}{place}, with masks" '
        f'style="aspect-ratio: {width * wide:g} / {height * tall:g}" '
        f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        f"<figcaption>{escape(study.name)}{place}: {width} x {height} px{small}</figcaption></figure>"
    )


def table(study: Study, index: int, threshold: float) -> str:
    """Found or not, scores, presence and size of each prompt; nothing before the model was asked."""
    if not study.layers:
        return ""
    several = len(study) > 1
    titles = ["", "prompt", "", "score", "presence", "area", *(["best slice", "volume"] if several else [])]
    rows = "".join(
        f'<tr><td><span class="swatch" style="background: rgb{COLOURS[number % len(COLOURS)]}"></span></td>'
        + "".join(f"<td>{cell}</td>" for cell in _cells(study, prompt, layers, index, threshold))
        for number, (prompt, layers) in enumerate(study.layers.items())
    )
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="scores"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(study: Study, prompt: str, layers: list[Layers], index: int, threshold: float) -> list[str]:
    layer = layers[index]
    pixels = np.count_nonzero(layer.mask(threshold))
    tall, wide = study.pixel_mm or (0.0, 0.0)
    area = f"{pixels * tall * wide / 100:.2f} cm²" if study.pixel_mm else f"{pixels} px"
    presence = "-" if layer.presence is None else f"{layer.presence:.2f}"
    found = "found" if pixels else "not found"
    cells = [escape(prompt), found, f"{layer.score:.2f}", presence, area]
    if len(study) > 1:
        best = max(range(len(layers)), key=lambda i: layers[i].score)
        voxels = sum(int(one.mask(threshold).sum()) for one in layers)
        cells += [f"{best + 1} ({layers[best].score:.2f})", _volume(study, voxels)]
    return cells


def _volume(study: Study, voxels: int) -> str:
    spacing = getattr(study.source, "spacing_mm", None)
    return f"{voxels * np.prod(spacing) / 1000:.1f} ml" if spacing else f"{voxels} voxels"


def messages(lines: list[str]) -> str:
    return '<ul class="messages">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""
