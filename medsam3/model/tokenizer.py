"""Texts to the ids of SAM3's text encoder.

Q texts, C = 32 tokens each.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

TEXT_LENGTH = 32  # tokens, with begin and end; longer prompts are cut
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's vocabulary, in the open_clip_torch wheel
BPE_MERGES = 48894


class ConceptTokenizer:
    """Texts to ids and mask of fixed length; a text that was asked before costs a look-up."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """
        Returns:
            ids [Q, C], padded with the end token, and mask [Q, C], 1 = valid. A longer text is cut
            and keeps its end token.

        Raises:
            ValueError: an empty text.
        """
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encode(text)
        ids, masks = zip(*(self._known[text] for text in texts), strict=True)
        return torch.stack(ids), torch.stack(masks)

    def length(self, text: str) -> int:
        """Tokens of a text, with begin and end; those beyond TEXT_LENGTH are cut."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        if not text.strip():
            raise ValueError("an empty text is no prompt: give the name of a concept")
        encoded = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
        return encoded.input_ids[0], encoded.attention_mask[0]


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer (49,408 tokens) from the vocabulary in the open_clip_torch wheel; needs no network."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations, "open_clip_torch is a dependency"
    file = Path(package.submodule_search_locations[0]) / BPE_FILE
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : BPE_MERGES + 1])]
    # Printable bytes stand for themselves, the others for the characters from 256 on (the byte alphabet of GPT-2).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = alphabet + [f"{c}</w>" for c in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]  # pairs, as its own files hold them
        model_max_length=TEXT_LENGTH,
    )


def tokenizer_of(path: Path) -> CLIPTokenizer:
    """The tokenizer that comes with the checkpoint, or CLIP's, which has the same ids."""
    for folder in (path, path / "best"):
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            return CLIPTokenizer.from_pretrained(folder)
    return clip_tokenizer()
