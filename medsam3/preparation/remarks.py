"""What is legal in a data set, but seldom meant: words of no vocabulary, concepts of no image, and so on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from medsam3.layouts.reader import Item
from medsam3.messages import listed
from medsam3.registry.spec import DatasetSpec
from medsam3.registry.vocabulary import Vocabulary

MOST_INSTANCES = 200  # SAM3 makes so many predictions for a prompt


def unknown_words(spec: DatasetSpec, vocabulary: Vocabulary) -> list[str]:
    """A line if concepts are no canonical names: two data sets would teach two words for one thing."""
    problems = vocabulary.problems(spec.concept_names)
    return [f"{spec.name}: not in {vocabulary.path.name}: {'; '.join(problems)}"] if problems else []


def crowded_images(spec: DatasetSpec, crowded: Mapping[str, Sequence[tuple[int, str]]]) -> list[str]:
    """A line for each concept with more instances in an image than SAM3 can find.

    Args:
        crowded: concept -> (instances, item) of each image with more than MOST_INSTANCES.
    """
    return [
        f"{spec.name}: {len(images)} image{'s hold' if len(images) > 1 else ' holds'} more than {MOST_INSTANCES} of "
        f"{concept!r} (up to {max(images)[0]}, in {max(images)[1]}); SAM3 makes {MOST_INSTANCES} predictions for a "
        "prompt, so the others are neither learnt nor found"
        for concept, images in crowded.items()
    ]


def turned_images(spec: DatasetSpec, items: Sequence[str]) -> list[str]:
    """A line if there are photos that viewers turn by an EXIF tag, as many drawing tools do."""
    return [
        f"{spec.name}: an EXIF tag turns {len(items)} image{'s' if len(items) > 1 else ''} in viewers "
        f"({listed(items, 3)}), but not here: masks that were drawn on what a viewer shows lie wrong. Then save these "
        "images upright (exiftran -ai, mogrify -auto-orient) and prepare again"
    ][: len(items)]


def deep_colours(spec: DatasetSpec, brightest: Sequence[int]) -> list[str]:
    """A line if there are images of 16 bits per colour, which are black where a camera fills 12 of them.

    Args:
        brightest: value of each of them, as read.
    """
    if not brightest:
        return []
    return [
        f"{spec.name}: of 16 bits per colour the upper 8 are read, in {len(brightest)} images; their brightest value "
        f"is {max(brightest)} of 255. Are they too dark, save them with 8 bits"
    ]


def never_there(spec: DatasetSpec, concepts: Collection[int]) -> list[str]:
    """A line if concepts are in no image, as when a threshold or a value does not fit the mask files.

    Args:
        concepts: those that are in some image, as places in the spec's `concept_names`.
    """
    never = [name for place, name in enumerate(spec.concept_names) if place not in concepts]
    return [f"{spec.name}: in no image: {listed(never, 8)}"] if never else []


def torn_groups(spec: DatasetSpec, items: Sequence[Item], parts: Sequence[str]) -> list[str]:
    """A line if a patient, video or volume lies in several parts that were drawn (and not fixed by the data set)."""
    parts_of: dict[str, set[str]] = {}
    for item, part in zip(items, parts, strict=True):
        if item.part is None:
            parts_of.setdefault(item.group, set()).add(part)
    torn = [group for group, found in parts_of.items() if len(found) > 1]
    if not torn:
        return []
    return [
        f"{spec.name}: {len(torn)} of {len(parts_of)} groups (patients, videos, volumes) lie in both parts of the "
        f"split by image: {listed(torn, 3)}; data.split.by=group keeps them together"
    ]
