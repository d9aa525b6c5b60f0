"""Which mask files belong to which image file: both patterns must capture the same texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medsam3.layouts.mask_coding import Key
from medsam3.layouts.reader import Problem
from medsam3.messages import one_of
from medsam3.registry.patterns import FilePattern, list_files
from medsam3.registry.spec import UNION, DatasetSpec

MISSING_MASK = ("error", "exclude", "absent", "unlabelled")
MissingMask = str | dict[int | str, str]  # one of MISSING_MASK, or one for each key of masks


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The mask files of an image that are about one key."""

    key: Key  # of concepts; None: they hold all concepts
    paths: tuple[str, ...]  # relative to the root


MaskFiles = tuple[KeyFiles, ...]


@dataclass(frozen=True)
class Pair:
    """An image file and its mask files, as relative paths; `id` joins all placeholders of the image pattern by "/"."""

    id: str
    image: str
    masks: MaskFiles
    captured: Mapping[str, str]  # placeholder of the image pattern -> its text


def check_missing_mask(value: MissingMask) -> None:
    """Raises a ValueError if `value` is or holds what is none of MISSING_MASK."""
    for rule in value.values() if isinstance(value, dict) else (value,):
        one_of("options.missing_mask", rule, MISSING_MASK)


def pair_files(spec: DatasetSpec, root: Path, missing_mask: MissingMask) -> tuple[list[Pair], list[Problem]]:
    """Pair the image and mask files below `root` by the patterns of the spec.

    A file that fits both an image and a mask pattern is a mask, unless the two patterns are the same text.

    Args:
        missing_mask: what an image without a mask file (of a key) means. error: a problem; exclude: left out, listed;
            absent: the concept is not in the image; unlabelled: it is not annotated there, and an image without any
            mask file is left out.

    Returns:
        The pairs, and a problem for each image or mask file without a partner.
    """
    image_patterns = [FilePattern(text) for text in spec.images]
    mask_patterns = {key: [FilePattern(text) for text in texts] for key, texts in spec.mask_patterns().items()}
    there = list_files(root, [*image_patterns, *(p for patterns in mask_patterns.values() for p in patterns)])
    files = [path for path in there if path not in spec.ignore_files]
    index = {key: [_by_capture(pattern, files) for pattern in patterns] for key, patterns in mask_patterns.items()}
    claimed = {
        path
        for key, patterns in mask_patterns.items()
        for pattern, captures in zip(patterns, index[key], strict=True)
        if pattern.text not in spec.images
        for paths in captures.values()
        for path in paths
    }
    pairs: list[Pair] = []
    any_image = False
    problems = [Problem(path, spec.ignore_files[path], expected=True) for path in there if path in spec.ignore_files]
    used: set[str] = set()
    for path in files:
        captured = next((c for p in image_patterns if (c := p.match(path)) is not None), None)
        if captured is None or path in claimed:
            continue
        any_image = True
        item_id = "/".join(captured.values())
        masks = [KeyFiles(key, _masks_of(captured, mask_patterns[key], index[key])) for key in mask_patterns]
        used.update(path for files_of_key in masks for path in files_of_key.paths)
        rules = {_rule(missing_mask, mask.key) for mask in masks if not mask.paths}
        kept = tuple(mask for mask in masks if mask.paths or _rule(missing_mask, mask.key) != "unlabelled")
        if rules & {"error", "exclude"} or not kept:
            problems.append(Problem(item_id, f"{path}: image without mask", expected="error" not in rules))
        else:
            pairs.append(Pair(item_id, path, kept, captured))
    if any_image:  # otherwise the reader says so, once
        problems += [Problem(path, "mask without image") for path in sorted(claimed - used)]
    return pairs, problems


def annotated_concepts(spec: DatasetSpec, masks: MaskFiles) -> tuple[str, ...]:
    """The concepts that somebody looked for in an image: all but those whose file is not there (unlabelled)."""
    keys = {mask.key for mask in masks}
    return tuple(c for key, c in spec.concepts.items() if None in keys or key in keys or key == UNION)


def _rule(missing_mask: MissingMask, key: Key) -> str:
    return missing_mask[key] if isinstance(missing_mask, dict) and key is not None else str(missing_mask)


Captures = tuple[tuple[str, str], ...]


def _by_capture(pattern: FilePattern, files: list[str]) -> dict[Captures, list[str]]:
    result: dict[Captures, list[str]] = {}
    for path in files:
        captured = pattern.match(path)
        if captured is not None:
            result.setdefault(tuple(sorted(captured.items())), []).append(path)
    return result


def _masks_of(
    captured: dict[str, str], patterns: list[FilePattern], index: list[dict[Captures, list[str]]]
) -> tuple[str, ...]:
    """Files of all patterns whose placeholders have the image's values, in the patterns' order, each file once."""
    found: dict[str, None] = {}
    for pattern, by_capture in zip(patterns, index, strict=True):
        if set(pattern.names) <= set(captured):
            wanted = tuple(sorted((name, captured[name]) for name in pattern.names))
            found.update(dict.fromkeys(by_capture.get(wanted, ())))
    return tuple(found)
