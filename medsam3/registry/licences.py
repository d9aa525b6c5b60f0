"""What the licences of data sets add up to for a model trained on them.

A licence speaks of images; whether a trained model is derived from them is not settled. What is said here is the
cautious reading: as if it were. It is no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medsam3.messages import one_of

COMMERCIAL = ("allowed", "forbidden", "unclear")
DERIVATIVES = ("allowed", "same licence", "forbidden", "unclear")
SHARING = ("allowed", "forbidden", "unclear")


@dataclass(frozen=True)
class Terms:
    """What a licence says; unclear: it is silent, or there is none."""

    commercial: str  # use for money: one of COMMERCIAL
    derivatives: str  # publishing what is made from the images: one of DERIVATIVES
    sharing: str  # passing the images themselves on: one of SHARING


@dataclass(frozen=True)
class Licence:
    """A data set that a model was trained on, as far as rights go."""

    title: str
    terms: Terms | None  # None: not recorded
    confirmed: bool  # read at the set's home, or in its owners' own documents


def check_terms(terms: Terms, confidence: str, where: str) -> None:
    """Raise a ValueError that names the key if a value is not a legal one, or says more than is known.

    Args:
        confidence: of the licence; an unsure one allows nothing.
    """
    for key, legal in (("commercial", COMMERCIAL), ("derivatives", DERIVATIVES), ("sharing", SHARING)):
        value = getattr(terms, key)
        one_of(f"{where}.{key}", value, legal)
        if value == "allowed" and confidence == "unsure":
            raise ValueError(f"{where}.{key}=allowed: the licence is unsure, so it must be unclear")


def verdict(licences: Iterable[Licence]) -> str:
    """How a model trained on all of these may be published, in the cautious reading.

    Returns:
        "ask first": a set forbids what is derived, says nothing clear of it, or asks for its own licence, which the SAM
        License does not let one choose; "research only": else, and a set does not clearly allow commercial use;
        "any use": the rest, within the SAM License.
    """
    terms = [licence.terms for licence in licences]
    if any(t is None or t.derivatives != "allowed" for t in terms):
        return "ask first"
    return "research only" if any(t is not None and t.commercial != "allowed" for t in terms) else "any use"


OPENINGS = {
    "ask first": "Ask the owners of some data sets before you publish these weights (see below).",
    "research only": "These weights may be published for research; not all data sets allow commercial use.",
    "any use": "No licence of the training data forbids publishing these weights or using them commercially.",
}
RULES = (  # key and value of Terms, and the sentence that the sets with it end
    ("derivatives", "forbidden", "Publishing what is derived is forbidden by"),
    ("derivatives", "same licence", "What is derived must keep the licence, which clashes with the SAM License:"),
    ("derivatives", "unclear", "Nothing clear is said of publishing what is derived by"),
    ("commercial", "forbidden", "Commercial use is forbidden by"),
    ("commercial", "unclear", "Nothing clear is said of commercial use by"),
    ("sharing", "forbidden", "Images must not be passed on, nor shown beside the model, of"),
    ("sharing", "unclear", "Nothing clear is said of showing images beside the model by"),
)


def publishing(licences: Iterable[Licence]) -> list[str]:
    """What binds whoever publishes a model trained on these sets: the verdict, then a sentence for each rule."""
    licences = list(licences)
    lines = [OPENINGS[verdict(licences)]]
    for key, value, sentence in RULES:
        found = [licence.title for licence in licences if licence.terms and getattr(licence.terms, key) == value]
        lines += [f"{sentence} {', '.join(found)}."] if found else []
    likely = [licence.title for licence in licences if licence.terms and not licence.confirmed]
    lines += [f"Not confirmed at its home is the licence of {', '.join(likely)}."] if likely else []
    unknown = [licence.title for licence in licences if licence.terms is None]
    lines += [f"No licence is recorded of {', '.join(unknown)}: look it up."] if unknown else []
    return lines
