"""What the values of a mask file mean: grey above a threshold, exact values, colours, or instance numbers.

Shapes: H x W the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances, Mask
from medsam3.layouts.outlines import fill_holes, fill_outlines
from medsam3.messages import listed
from medsam3.registry.spec import UNION, DatasetSpec

ALL = "all"
FILL = {"holes": fill_holes, "outlines": fill_outlines}
Pixels = NDArray[Any]
Key = int | str | None  # a key of spec.concepts; None: the file holds all concepts


@dataclass(frozen=True)
class NamedPixels:
    """The values of one mask file (or of one slice of a label volume)."""

    key: Key
    values: Pixels  # [H, W], or [H, W, 3] in colour
    where: str  # for messages


class MaskCoding:
    """Turns mask values into instances per concept, as a DatasetSpec says.

    - threshold given, or one file per concept: binary; grey above the threshold belongs to the concept. Without a
      threshold the file may hold 0 and one other value only, so that a JPEG mask or an index mask is noticed. `fill`
      adds what is enclosed, see outlines.py.
    - keys that are whole numbers: index masks, exact values.
    - keys "#RRGGBB": colour masks; the nearest colour (black included) within `tolerance`, 0 = exact.
    - instances: labels: the values number the instances of the one concept.
    - the key "*" of concepts: the union of the others.

    Value 0 (black) is background unless it is a key. Another value that is neither a key nor in `ignore_values` is an
    error; `ignore_values` ["all"] lets every value pass.

    Raises:
        ValueError: options that do not go together with the keys of `concepts`.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        threshold: float | dict[int | str, float] | None = None,
        ignore_values: Sequence[int | str] = (),
        tolerance: float = 0,
        fill: str | None = None,
        one_concept_each: bool = False,
    ) -> None:
        """
        Args:
            threshold, ignore_values, tolerance: see above.
            fill: holes | outlines, for binary masks.
            one_concept_each: each file is about the concept of its key, also where `masks` is no mapping. A key that is
                not in `concepts` is a class without a concept; its masks must be empty.
        """
        self.spec = spec
        self.threshold = threshold
        self.tolerance = tolerance
        self.union = spec.concepts.get(UNION)
        self.concepts = {key: concept for key, concept in spec.concepts.items() if key != UNION}
        keys = list(self.concepts)
        one_each = one_concept_each or isinstance(spec.masks, dict)
        self.fill = FILL.get(fill) if fill is not None else None
        self.binary = one_each or threshold is not None
        self.colours = not self.binary and all(_is_colour(key) for key in keys)
        self.ignore_all = tuple(ignore_values) == (ALL,)
        self.ignored = () if self.ignore_all else tuple(ignore_values)
        for value in self.ignored:
            if value in self.concepts:
                raise ValueError(
                    f"options.ignore_values: {value!r} is a key of concepts too ({self.concepts[value]!r})"
                )
        if fill is not None and (fill not in FILL or not self.binary):
            raise ValueError(f"options.fill={fill!r}: must be one of {', '.join(FILL)}, and is for binary masks only")
        if self.binary and not one_each and len(keys) > 1:
            raise ValueError("options.threshold: splits into one concept, but concepts has several; give their values")
        if isinstance(threshold, dict) and (not one_each or set(threshold) - set(keys)):
            raise ValueError(f"options.threshold: its keys must be those of masks ({', '.join(map(str, keys))})")
        if spec.instances == "labels" and not one_each and len(keys) != 1:
            raise ValueError(
                f"instances: labels: the values number instances, so concepts must have one key, not {keys} "
                "(any name; * is no key of its own)"
            )
        if not self.binary and not self.colours and spec.instances != "labels":
            for key in keys:
                if not isinstance(key, int):
                    raise ValueError(
                        f'concepts: {key!r} is neither a whole number nor a colour "#RRGGBB"; give the value in the '
                        "mask, or options.threshold, or one pattern per concept under masks"
                    )
        if self.colours:
            key_of_colour: dict[tuple[int, int, int], Key] = {_rgb(key): key for key in keys}
            ignored = [_rgb(value) for value in self.ignored]
            twice = [key for key in keys if key_of_colour[_rgb(key)] != key or _rgb(key) in ignored]
            if twice:
                raise ValueError(f"concepts: {twice[0]!r} stands there, or in options.ignore_values, a second time")
            self._palette = _Palette(key_of_colour, ignored, tolerance)

    def decode(self, files: Sequence[NamedPixels], size: tuple[int, int]) -> dict[str, Instances]:
        """Instances of every concept that the files are about; N = 0 where a concept is annotated and absent.

        Args:
            files: the mask files of one image.
            size: height and width of the image.

        Raises:
            ValueError: a mask of another size, an unknown value; names the file.
        """
        for file in files:
            if file.values.shape[:2] != size:
                found = " x ".join(map(str, file.values.shape[:2]))
                raise ValueError(
                    f"{file.where}: the mask is {found} px, its image {size[0]} x {size[1]} (height x width)"
                )
        if self.spec.instances == "labels":
            return self._numbered(files)
        masks: dict[str, list[Mask]] = {}
        for file in files:
            for concept, mask in self._regions(file).items():
                masks.setdefault(concept, []).append(mask)
        return {concept: self._instances(concept, parts, size) for concept, parts in masks.items()}

    def _numbered(self, files: Sequence[NamedPixels]) -> dict[str, Instances]:
        result: dict[str, Instances] = {}
        for file in files:
            concept = self.concepts[file.key] if file.key is not None else next(iter(self.concepts.values()))
            if file.values.ndim != 2 or not np.issubdtype(file.values.dtype, np.integer):
                raise ValueError(f"{file.where}: instances: labels needs whole numbers, found {file.values.dtype}")
            if concept in result:
                raise ValueError(f"{file.where}: a second file of instance numbers for {concept!r} in one image")
            result[concept] = Instances.labels(file.values, self.spec.min_area_px)
        if self.union is None:
            return result
        union = Instances.together(list(result.values()))
        whole = self.spec.instances_of(self.union) == "whole"
        return result | {self.union: Instances.whole(union.union()) if whole else union}

    def _instances(self, concept: str, masks: list[Mask], size: tuple[int, int]) -> Instances:
        how = self.spec.instances_of(concept)
        if how == "files":
            return Instances.separate(masks, size, self.spec.min_area_px)
        union = masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)
        return Instances.components(union, self.spec.min_area_px) if how == "components" else Instances.whole(union)

    def _regions(self, file: NamedPixels) -> dict[str, Mask]:
        if self.binary:
            return self._binary_region(file)
        if self.colours:
            return self._by_key(*self._palette.indices(file, self.ignore_all))
        values = file.values if file.values.ndim == 2 else _grey(file)
        self._reject_unknown(values, file.where)
        return self._by_key(values, {key: key for key in self.concepts})

    def _binary_region(self, file: NamedPixels) -> dict[str, Mask]:
        mask = self._above_threshold(file)
        if self.fill is not None:
            try:
                mask = self.fill(mask)
            except ValueError as error:
                raise ValueError(f"{file.where}: {error}") from error
        concept = self.concepts.get(file.key) if file.key is not None else next(iter(self.concepts.values()))
        if concept is None:
            if mask.any():
                raise ValueError(f"{file.where}: {file.key!r} is no key of concepts, but the mask is not empty")
            return {}
        return {concept: mask} if self.union is None else {concept: mask, self.union: mask}

    def _by_key(self, values: Pixels, value_of_key: dict[Any, Any]) -> dict[str, Mask]:
        result: dict[str, Mask] = {}
        for key, concept in self.concepts.items():
            mask = values == value_of_key[key]
            for name in (concept,) if self.union is None else (concept, self.union):
                result[name] = result[name] | mask if name in result else mask
        return result

    def _above_threshold(self, file: NamedPixels) -> Mask:
        values = file.values if file.values.ndim == 2 else _grey(file)
        threshold = self.threshold.get(file.key) if isinstance(self.threshold, dict) else self.threshold  # type: ignore[arg-type]
        if threshold is not None:
            return values > threshold
        found = _distinct(values)
        if len(found) > 2 or (len(found) == 2 and found[0] != 0):
            raise ValueError(
                f"{file.where}: a binary mask with {len(found)} values ({listed(found, 8)}): set options.threshold"
            )
        return values != 0

    def _reject_unknown(self, values: Pixels, where: str) -> None:
        if self.ignore_all:
            return
        known = {0, *self.concepts, *self.ignored}
        unknown = [value for value in _distinct(values) if value not in known]
        if unknown:
            raise ValueError(
                f"{where}: unknown label value{'s' if len(unknown) > 1 else ''} {listed(unknown, 8)} (known: "
                f"{', '.join(str(v) for v in sorted(known, key=str))}); add them to concepts or options.ignore_values"
            )


class _Palette:
    """Colours of a mask and the nearest-colour rule."""

    def __init__(
        self, colours: dict[tuple[int, int, int], Key], ignored: list[tuple[int, int, int]], tolerance: float
    ) -> None:
        others = [c for c in ((0, 0, 0), *ignored) if c not in colours]
        self.colours = np.asarray([*colours, *others], dtype=np.int64)  # [K, 3], concepts first
        self.index_of_key = {key: i for i, key in enumerate(colours.values())}
        self.tolerance = tolerance

    def indices(self, file: NamedPixels, ignore_all: bool) -> tuple[Pixels, dict[Key, int]]:
        """[H, W] index of each pixel's colour (-1: ignored), and the index of each key."""
        if file.values.ndim != 3:
            raise ValueError(f"{file.where}: concepts are colours, but the file is not in colour")
        red, green, blue = (file.values[:, :, channel].astype(np.int32) for channel in range(3))
        codes = (red << 16) | (green << 8) | blue
        is_there = np.zeros(1 << 24, dtype=bool)  # tables of all colours are ten times as fast as sorting the pixels
        is_there[codes] = True
        found = np.flatnonzero(is_there)
        rgb = np.stack([found >> 16, (found >> 8) & 255, found & 255], axis=1)
        distances = np.sqrt(((rgb[:, None].astype(np.int64) - self.colours[None]) ** 2).sum(-1))
        nearest = distances.argmin(axis=1)
        unknown = distances.min(axis=1) > self.tolerance
        if unknown.any() and not ignore_all:
            colours = listed([f"#{value:06X}" for value in found[unknown]], 8)
            known = ", ".join(f"#{r:02X}{g:02X}{b:02X}" for r, g, b in self.colours)
            raise ValueError(
                f"{file.where}: unknown colours {colours} (known: {known}, tolerance {self.tolerance:g}); add them to "
                "concepts or options.ignore_values, or raise options.tolerance"
            )
        nearest[unknown] = -1
        index_of_colour = np.zeros(1 << 24, dtype=np.int16)
        index_of_colour[found] = nearest
        return index_of_colour[codes], self.index_of_key


def _is_colour(key: Any) -> bool:
    return isinstance(key, str) and len(key) == 7 and key[0] == "#" and set(key[1:].lower()) <= set("0123456789abcdef")


def _rgb(colour: Any) -> tuple[int, int, int]:
    if not _is_colour(colour):
        raise ValueError(f'{colour!r} is not a colour "#RRGGBB"')
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _grey(file: NamedPixels) -> Pixels:
    """One channel of a mask stored as RGB with three equal channels; a coloured mask is an error, not a grey value."""
    sample = file.values[::4, ::4].astype(np.int16)
    if np.abs(sample - sample[:, :, :1]).max(initial=0) > 16:
        raise ValueError(f'{file.where}: the mask is in colour; give the colours as keys of concepts ("#RRGGBB")')
    return file.values[:, :, 0]


def _distinct(values: Pixels) -> list[Any]:
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return np.unique(values).tolist()
