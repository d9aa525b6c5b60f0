"""What the user of a prediction should know before its masks come: of the checkpoint's size, and of each prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from medsam3.model.load import LoadedModel
from medsam3.model.tokenizer import TEXT_LENGTH, ConceptTokenizer
from medsam3.registry.vocabulary import Vocabulary

LIST_CONCEPTS = "--list-concepts"


def remarks(loaded: LoadedModel, prompts: Iterable[str]) -> list[str]:
    """What the user should know before the numbers come."""
    lines = []
    if loaded.image_size != loaded.own_image_size:
        lines.append(
            f"WARNING image_size={loaded.image_size}: the checkpoint was trained at {loaded.own_image_size} px; "
            "expect worse masks (image_size=null takes its own)"
        )
    vocabulary = Vocabulary.load()
    for prompt in prompts:
        lines += [f"prompt {prompt!r}: {words}" for words in _on(prompt, vocabulary, loaded.tokenizer)]
    return lines


def _on(prompt: str, vocabulary: Vocabulary, tokenizer: ConceptTokenizer) -> Iterator[str]:
    length, known, near = tokenizer.length(prompt), vocabulary.find(prompt), vocabulary.near(prompt)
    if length > TEXT_LENGTH:
        yield f"WARNING {length} tokens; the model reads the first {TEXT_LENGTH}, and the rest is cut"
    if "," in prompt:
        yield "asked as one prompt, with its comma; for several set prompts='[a, b]'"
    if known is None:
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"{LIST_CONCEPTS} shows what is"
        yield f"not in the vocabulary, asked as it is; {hint}"
    elif prompt.lower() != known.name:
        yield f"asked as it is; the vocabulary's name for it, which training uses, is {known.name!r}"
