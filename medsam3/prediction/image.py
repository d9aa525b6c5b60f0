"""From one image and a list of concepts to one mask and one score per concept.

Shapes: C concepts, P predictions per concept, h x w mask logits, H x W the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsam3.config import PredictionConfig
from medsam3.data.transforms import image_to_tensor
from medsam3.layouts.instances import Mask
from medsam3.messages import listed
from medsam3.model.detector import TextDetector
from medsam3.model.tokenizer import ConceptTokenizer
from medsam3.prediction.overlaps import resolve_overlaps


@dataclass(frozen=True)
class Prediction:
    concept: str
    score: float  # confidence of the best mask: sigmoid(logit) x sigmoid(presence)
    mask: Mask  # [H, W]


class ImagePredictor:
    """Text-only prediction as the paper evaluates it: the highest-confidence mask of each prompt (section 4.2).

    The vision encoder sees the image once, however many concepts are asked of it.
    """

    def __init__(
        self,
        detector: TextDetector,
        tokenizer: ConceptTokenizer,
        image_size: int,
        config: PredictionConfig,
        bf16: bool,
    ) -> None:
        self.detector = detector
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.config = config
        self.device = next(detector.parameters()).device
        self.bf16 = bf16 and self.device.type == "cuda"

    def predict(
        self, image: np.ndarray, concepts: Sequence[str], exclusive: Sequence[str] = (), prompts: Sequence[str] = ()
    ) -> list[Prediction]:
        """Masks of an image at its own size.

        Args:
            image: [H, W, 3] uint8.
            concepts: what to look for.
            exclusive: those of the concepts that may not overlap; a disputed pixel goes to the highest confidence.
            prompts: the words to use for each concept, where they differ from its name.

        Returns:
            One prediction per concept, in their order. Below `score_threshold` the mask is empty.

        Raises:
            ValueError: the model answers with scores or masks that are not finite.
        """
        pixels = image_to_tensor(image, self.image_size)[None]
        texts = list(prompts) or list(concepts)
        scores, logits = self._best_masks(pixels, texts)
        finite = scores.isfinite() & logits.isfinite().flatten(1).all(dim=1).cpu()
        if not finite.all():
            asked = listed([text for text, fine in zip(texts, finite, strict=True) if not fine])
            raise ValueError(
                f"the model's scores or masks are not finite for: {asked}; check its weights, try bf16=false"
            )
        logits = _resize(logits, image.shape[:2])
        masks = (logits > 0).cpu().numpy()
        kept = scores >= self.config.score_threshold
        masks &= kept.numpy()[:, None, None]
        shared = [i for i, concept in enumerate(concepts) if concept in exclusive]
        if self.config.resolve_overlaps and len(shared) > 1:
            confidences = (logits[shared].sigmoid().cpu() * scores[shared, None, None]).numpy()
            masks[shared] = resolve_overlaps(masks[shared], confidences)
        return [Prediction(c, float(s), m) for c, s, m in zip(concepts, scores, masks, strict=True)]

    @torch.inference_mode()
    def _best_masks(self, pixels: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Of pixels [1, 3, S, S], the best prediction of each prompt: score [C] (on the CPU), mask logits [C, h, w]."""
        was_training = self.detector.training
        self.detector.eval()
        scores, logits = [], []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.detector.encode_images(pixels.to(self.device))
            for start in range(0, len(prompts), self.config.queries_per_pass):
                input_ids, attention_mask = self.tokenizer(prompts[start : start + self.config.queries_per_pass])
                image_index = torch.zeros(len(input_ids), dtype=torch.long, device=self.device)
                texts = self.detector.encode_texts(input_ids.to(self.device), attention_mask.to(self.device))
                output = self.detector.detect(features, image_index, texts)
                best, index = output.one_to_one.logits[-1].float().max(dim=1)
                scores.append(best.sigmoid() * output.presence[-1].float().sigmoid())
                each = torch.arange(len(index), device=self.device)
                logits.append(output.one_to_one.masks_of(each, index, [1] * len(index)).float())
        self.detector.train(was_training)
        return torch.cat(scores).cpu(), torch.cat(logits)


def _resize(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
