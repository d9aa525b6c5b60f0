"""The generated parts of docs/licences.md: `python -m medsam3.registry.licence_page --write` writes them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from medsam3.files import write_text
from medsam3.registry.cards import MARKS, DatasetCard, load_cards, with_generated_parts
from medsam3.registry.licences import OPENINGS, publishing, verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "licences.md"


def licence_parts(cards: list[DatasetCard]) -> dict[str, str]:
    """Markdown by the name in the markers: what may be published after training on which sets; the sets one by one."""
    by_verdict = {name: [card for card in cards if _verdict([card]) == name] for name in OPENINGS}
    training = {name: [card for card in found if "train" in card.used_for] for name, found in by_verdict.items()}
    free, research = training["any use"], [*training["any use"], *training["research only"]]
    paper = [card for card in cards if "train" in card.used_for]
    rows = [
        "| trained on | the weights |",
        "|---|---|",
        f"| {_names(free)} | {_verdict(free)} |",
        f"| these and {_names(training['research only'])} | {_verdict(research)} |",
        f"| all {len(paper)} training sets, as the paper | {_verdict(paper)} |",
    ]
    commands = [f"data.datasets=[{','.join(sorted(card.name for card in some))}]" for some in (free, research)]
    why = [f"- {sentence}" for sentence in publishing(card.rights for card in paper)[1:]]
    sets = [
        "| data set | licence | commercial use | what is derived | passing images on | alone |",
        "|---|---|---|---|---|---|",
    ]
    for card in cards:
        terms = card.terms
        cells = card.title, str(card.licence), terms.commercial, terms.derivatives, terms.sharing, _verdict([card])
        sets.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return {
        "verdicts": "\n".join(rows),
        "commands": "```\n" + "\n".join(commands) + "\n```",
        "why": "\n".join(why),
        "sets": "\n".join(sets),
    }


def _verdict(cards: Iterable[DatasetCard]) -> str:
    return verdict(card.rights for card in cards)


def _names(cards: list[DatasetCard]) -> str:
    return ", ".join(card.title + MARKS[card.licence.confidence] for card in cards)


if __name__ == "__main__":
    parts = licence_parts(load_cards())
    if "--write" in sys.argv:
        write_text(PAGE, with_generated_parts(PAGE.read_text(encoding="utf-8"), parts))
    else:
        print("\n\n".join(parts.values()))
