"""The parameters that training does not reach."""

from __future__ import annotations

from transformers import Sam3Model

# Text prompts never reach these tensors, in Meta's code as in transformers': the coarsest level of the neck, the text
# encoder's own projection, the last stage of the pixel decoder, and what the geometry encoder has for boxes (in Meta's
# training the gradient of that is zero, and it has no weight decay here).
UNUSED = (
    "vision_encoder.neck.fpn_layers.3.proj1.",
    "vision_encoder.neck.fpn_layers.3.proj2.",
    "text_encoder.text_projection.",
    "mask_decoder.pixel_decoder.conv_layers.2.",
    "mask_decoder.pixel_decoder.norms.2.",
    "geometry_encoder.boxes_",
    "geometry_encoder.label_embed.",
    "geometry_encoder.vision_layer_norm.",
)
# What a loss variant leaves without gradient besides.
UNREACHED = {
    "sam3": (),
    "paper": ("mask_decoder.mask_embedder.", "mask_decoder.instance_projection."),
    "box_only": ("mask_decoder.", "vision_encoder.neck.fpn_layers.0.", "vision_encoder.neck.fpn_layers.1."),
}


def freeze_unreached(model: Sam3Model, variant: str) -> None:
    """Freeze what the loss variant gives no gradient, so that data-parallel training need not search for it.

    Training does not change: without a gradient the optimizer leaves a parameter alone, weight decay included.
    """
    for prefix in (*UNUSED, *UNREACHED[variant]):
        named = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
        assert named, f"Sam3Model has no parameter {prefix}*: another version of transformers?"
        for parameter in named:
            parameter.requires_grad_(False)
