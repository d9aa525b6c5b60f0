"""Licences added up: the verdict of a mixture is that of its strictest set, and every rule names its sets."""

from __future__ import annotations

import pytest

from medsam3.registry.cards import MANIFESTS, load_card, load_cards, with_generated_parts
from medsam3.registry.licence_page import PAGE, licence_parts
from medsam3.registry.licences import Licence, Terms, publishing, verdict

BY = Licence("Free", Terms("allowed", "allowed", "allowed"), True)
NC = Licence("Research", Terms("forbidden", "allowed", "allowed"), True)
SA = Licence("Alike", Terms("forbidden", "same licence", "allowed"), True)
ND = Licence("Unchanged", Terms("forbidden", "forbidden", "allowed"), True)
KEPT = Licence("Kept", Terms("allowed", "allowed", "forbidden"), True)
SILENT = Licence("Silent", Terms("unclear", "unclear", "unclear"), True)
LIKELY = Licence("Likely", BY.terms, False)
OWN = Licence("Own", None, False)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ([], "any use"),
        ([BY, KEPT, LIKELY], "any use"),
        ([BY, NC], "research only"),
        ([BY, Licence("x", Terms("unclear", "allowed", "allowed"), True)], "research only"),
        ([BY, SA], "ask first"),
        ([NC, ND], "ask first"),
        ([SILENT], "ask first"),
        ([BY, OWN], "ask first"),
    ],
)
def test_the_strictest_set_decides(licences, expected):
    assert verdict(licences) == verdict(licences[::-1]) == expected


def test_every_rule_names_its_sets():
    assert publishing([BY]) == [
        "No licence of the training data forbids publishing these weights or using them commercially."
    ]
    assert publishing([BY, SA, NC, KEPT, LIKELY, OWN, ND, SILENT]) == [
        "Ask the owners of some data sets before you publish these weights (see below).",
        "Publishing what is derived is forbidden by Unchanged.",
        "What is derived must keep the licence, which clashes with the SAM License: Alike.",
        "Nothing clear is said of publishing what is derived by Silent.",
        "Commercial use is forbidden by Alike, Research, Unchanged.",
        "Nothing clear is said of commercial use by Silent.",
        "Images must not be passed on, nor shown beside the model, of Kept.",
        "Nothing clear is said of showing images beside the model by Silent.",
        "Not confirmed at its home is the licence of Likely.",
        "No licence is recorded of Own: look it up.",
    ]


def test_the_paper_s_mixture_is_to_be_asked_for():
    assert verdict(card.rights for card in load_cards() if "train" in card.used_for) == "ask first"


@pytest.mark.parametrize("card", load_cards(), ids=lambda card: card.name)
def test_terms_are_those_of_the_licence(card):
    """What the words of a licence say must stand in its terms too, whoever changes one of them."""
    words, terms = card.licence.value, card.terms
    if "NC" in words or "no commercial" in words or "commercial use needs" in words:
        assert terms.commercial in ("forbidden", "unclear")
    if "-SA" in words and "copy" not in words and "BY-NC 4.0 in one text" not in words:
        assert terms.derivatives == "same licence"
    if "-ND" in words:
        assert terms.derivatives == "forbidden"
    if "not to be passed on" in words:
        assert terms.sharing == "forbidden"
    if "none" in words or "not stated" in words or "no text" in words:
        assert terms == SILENT.terms


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("commercial: unclear", "commercial: maybe", "terms.commercial='maybe': must be one of allowed"),
        ("derivatives: unclear", "derivatives: allowed", "terms.derivatives=allowed: the licence is unsure"),
        ("sharing: unclear", "share: unclear", "unknown key 'share'"),
    ],
)
def test_terms_that_say_more_than_is_known_are_refused(tmp_path, old, new, answer):
    text = (MANIFESTS / "drive.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "drive.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=answer):
        load_card("drive", tmp_path)


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert with_generated_parts(text, licence_parts(load_cards())) == text, (
        "python -m medsam3.registry.licence_page --write"
    )


def test_the_sets_that_the_page_offers_for_any_use_allow_it():
    command = licence_parts(load_cards())["commands"].splitlines()[1]
    names = command.removeprefix("data.datasets=[").removesuffix("]").split(",")
    assert {"bcss", "pcmmd", "polypgen"} <= set(names)
    for name in names:
        assert load_card(name).terms.commercial == load_card(name).terms.derivatives == "allowed", name
