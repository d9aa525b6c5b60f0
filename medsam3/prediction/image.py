"""From one image and a list of concepts to a mask and a score per concept and mask rule.

Shapes: C concepts, P predictions per concept, h x w mask logits, H x W the original image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsam3.config import PredictionConfig
from medsam3.data.transforms import image_to_tensor
from medsam3.layouts.instances import Instances
from medsam3.model.detector import BoxPrompts, DetectorOutput, TextDetector, TextFeatures
from medsam3.model.tokenizer import ConceptTokenizer
from medsam3.prediction.answer import Answer, Prediction, Query
from medsam3.prediction.detections import resized, scored_instances
from medsam3.prediction.overlaps import Overlaps, laid_over
from medsam3.prediction.rules import RULES, SEMANTIC, Choice, Heads, refuse_not_finite
from medsam3.prediction.tiles import ask_tiles, windows


class ImagePredictor:
    """Text-only prediction by the rules of the configuration.

    The vision encoder sees an image once, however many concepts are asked of it; a text is encoded once.
    """

    def __init__(
        self,
        detector: TextDetector,
        tokenizer: ConceptTokenizer,
        image_size: int,
        config: PredictionConfig,
        bf16: bool,
    ) -> None:
        """
        Args:
            detector: its weights may not change while the predictor lives, as encoded texts are kept.
        """
        self.detector = detector
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.config = config
        self.device = next(detector.parameters()).device
        self.bf16 = bf16 and self.device.type == "cuda"
        self._texts: dict[str, TextFeatures] = {}

    @torch.inference_mode()
    def predict(
        self,
        image: np.ndarray,
        concepts: Sequence[str],
        exclusive: Sequence[str] = (),
        prompts: Sequence[str] = (),
        boxes: Sequence[np.ndarray] = (),
        apart: bool = False,
        detected_from: float | None = None,
    ) -> list[Prediction]:
        """Masks of an image at its own size; one larger than `config.tile` is asked in tiles, see tiles.py.

        Args:
            image: [H, W, 3] uint8.
            concepts: what to look for.
            exclusive: those of the concepts that may not overlap; a disputed pixel goes to the highest confidence.
            prompts: the words to use for each concept, where they differ from its name.
            boxes: to show the model beside the words, for each concept [N, 4] cxcywh in 0..1; empty: none.
            apart: also the instances that the first rule lays over each other, see `_apart`.
            detected_from: also all predictions of at least this score, see `scored_instances`; None: not.

        Returns:
            One prediction per concept, in their order.

        Raises:
            ValueError: the model answers with scores or masks that are not finite.
        """
        places = {place for place, concept in enumerate(concepts) if concept in exclusive}
        asked = list(prompts) or list(concepts)
        if self.config.tile is not None and max(image.shape[:2]) > self.config.tile:
            assert not boxes
            return self._in_tiles(image, concepts, places, asked, apart, detected_from)
        queries = list(self.ask([image], asked, boxes, detected_from))
        answers: list[dict[str, Answer]] = [{} for _ in concepts]
        for rule in self.config.rules:
            masks = self._masks([(query.choices[rule], query.logits) for query in queries], image.shape[:2], places)
            for found, query, mask in zip(answers, queries, masks, strict=True):
                found[rule] = Answer(query.choices[rule].score, mask)
        return [
            Prediction(
                concept,
                query.heads.presence,
                found,
                _apart(query, self.config.rules[0], found) if apart else (),
                query.detections,
            )
            for concept, query, found in zip(concepts, queries, answers, strict=True)
        ]

    def _in_tiles(
        self,
        image: np.ndarray,
        concepts: Sequence[str],
        places: set[int],
        asked: Sequence[str],
        apart: bool,
        detected_from: float | None,
    ) -> list[Prediction]:
        """`predict` for an image that is larger than a tile."""
        assert self.config.tile is not None
        tiles = windows(image.shape[:2], self.config.tile, self.config.tile_overlap)
        exclusive = places if len(places) > 1 and self.config.resolve_overlaps else set()
        found = ask_tiles(
            image,
            lambda tile: self.ask([tile], asked, detected_from=detected_from),
            tiles,
            len(concepts),
            self.config.rules,
            exclusive,
            apart,
            None if detected_from is None else self.config.union_threshold,
        )
        return [
            Prediction(
                concept,
                whole.presence,
                {rule: Answer(whole.scores[rule], whole.masks[rule]) for rule in self.config.rules},
                whole.instances,
                whole.detections,
            )
            for concept, whole in zip(concepts, found, strict=True)
        ]

    @torch.inference_mode()
    def ask(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        boxes: Sequence[np.ndarray] = (),
        detected_from: float | None = None,
    ) -> Iterator[Query]:
        """The same prompts to every image: what the rules choose, image after image, prompt after prompt.

        The vision encoder sees the images together, the rest `queries_per_pass` pairs of image and prompt at a time.
        Arguments and errors: see `predict`; boxes and `detected_from` are of a single image.
        """
        assert len(images) == 1 or (not len(boxes) and detected_from is None)
        size, shown_from = images[0].shape[:2], self.config.union_threshold
        was_training = self.detector.training
        switched = any(module.training for module in self.detector.modules())  # to look costs a fifth of to set
        if switched:
            self.detector.eval()
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                pixels = torch.stack([image_to_tensor(image, self.image_size) for image in images])
                features = self.detector.encode_images(pixels.to(self.device))
                pairs = [(number, prompt) for number in range(len(images)) for prompt in prompts]
                for start in range(0, len(pairs), self.config.queries_per_pass):
                    part = slice(start, start + self.config.queries_per_pass)
                    asked = [prompt for _, prompt in pairs[part]]
                    image_index = torch.tensor([number for number, _ in pairs[part]], device=self.device)
                    inputs: dict[str, Any] = {"box_prompts": _padded(boxes[part], self.device)} if boxes else {}
                    output = self.detector.detect(features, image_index, self._encoded(asked), **inputs)
                    for q, query in enumerate(self._chosen(output, asked)):
                        if detected_from is not None:
                            scores = query.heads.scores
                            own = scored_instances(
                                output.one_to_one, q, scores, detected_from, size, asked[q], shown_from
                            )
                            query = dataclasses.replace(query, detections=own)
                        yield query
        finally:
            if switched:
                self.detector.train(was_training)

    def _encoded(self, prompts: list[str]) -> TextFeatures:
        for text in prompts:
            if text not in self._texts:  # each alone, so that it does not depend on which came together
                input_ids, attention_mask = self.tokenizer([text])
                self._texts[text] = self.detector.encode_texts(
                    input_ids.to(self.device), attention_mask.to(self.device)
                )
        known = [self._texts[text] for text in prompts]
        return TextFeatures(torch.cat([text.tokens for text in known]), torch.cat([text.valid for text in known]))

    def _chosen(self, output: DetectorOutput, prompts: list[str]) -> Iterator[Query]:
        """The choices of every rule, and the masks that they need."""
        logits, presence = output.one_to_one.logits[-1].float(), output.presence[-1].float().sigmoid()
        scores = logits.sigmoid() * presence[:, None]
        logits, scores, presence = logits.cpu(), scores.cpu(), presence.cpu()
        refuse_not_finite(scores.isfinite().all(dim=1).tolist(), prompts)
        heads = [Heads(*values) for values in zip(logits, scores, presence.tolist(), strict=True)]
        choices = [{rule: RULES[rule](head, self.config) for rule in self.config.rules} for head in heads]
        wanted = [sorted({i for choice in found.values() for i in choice.masks} - {SEMANTIC}) for found in choices]
        counts = [len(found) for found in wanted]
        query = torch.tensor([q for q, found in enumerate(wanted) for _ in found], device=self.device, dtype=torch.long)
        number = torch.tensor([i for found in wanted for i in found], device=self.device, dtype=torch.long)
        masks = output.one_to_one.masks_of(query, number, counts).float()
        layers = [dict(zip(wanted[q], own, strict=True)) for q, own in enumerate(masks.split(counts))]
        if output.semantic is not None:
            layers = [found | {SEMANTIC: mask.float()} for found, mask in zip(layers, output.semantic, strict=True)]
        refuse_not_finite([all(mask.isfinite().all() for mask in found.values()) for found in layers], prompts)
        for values in zip(heads, choices, layers, strict=True):
            yield Query(*values)

    def _masks(
        self,
        chosen: list[tuple[Choice, dict[int, Tensor]]],
        size: tuple[int, int],
        exclusive: set[int],
    ) -> list[Tensor]:
        """Masks [H, W] of one rule, in the order of the concepts; those of `exclusive` places do not overlap."""
        overlaps = Overlaps(size, self.device) if len(exclusive) > 1 and self.config.resolve_overlaps else None
        masks: list[Tensor | None] = []
        for place, (choice, logits) in enumerate(chosen):
            shared = overlaps is not None and place in exclusive
            mask, confidence = laid_over(choice, logits, size, self.device, with_confidence=shared)
            if shared:
                assert overlaps is not None and confidence is not None
                overlaps.add(place, mask, confidence)
            masks.append(None if shared else mask)
        resolved = (overlaps.mask(place) if overlaps and mask is None else mask for place, mask in enumerate(masks))
        return [mask for mask in resolved if mask is not None]


def _padded(boxes: Sequence[np.ndarray], device: torch.device) -> BoxPrompts:
    """Boxes of several queries, [N, 4] each, as one tensor."""
    padded = torch.zeros(len(boxes), max(1, *(len(own) for own in boxes)), 4)
    valid = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for q, own in enumerate(boxes):
        padded[q, : len(own)] = torch.from_numpy(own)
        valid[q, : len(own)] = True
    return BoxPrompts(padded.to(device), valid.to(device))


def _apart(query: Query, rule: str, found: dict[str, Answer]) -> tuple[tuple[float, Instances], ...]:
    """Score and mask of each instance, the highest score first, as far as the concept's own mask reaches; what others
    took in full stays as an instance without pixels."""
    whole, choice = found[rule].mask, query.choices[rule]
    instances = []
    for number, score in sorted(zip(choice.masks, choice.confidences, strict=True), key=lambda pair: -pair[1]):
        mask = (resized(query.logits[number][None], whole.shape)[0] > 0).cpu().numpy()
        instances.append((score, Instances.whole(mask & whole)))
    return tuple(instances)
