"""Which tensor of Meta's SAM3 is which in transformers: the naming rule, both ways, for detector, neck and tracker.

Names are complete ones: `detector.` and `tracker.` on Meta's side (as in sam3.pt), `detector_model.`, `tracker_neck.`
and `tracker_model.` in transformers (as in Sam3VideoModel; a Sam3Model holds the first kind without its prefix).

In the table, `#` is a number, `%` the same number plus one, `*` a word, `@` weight or bias. In a name of transformers,
`?` stands for q, k and v, which Meta keeps as the thirds of one tensor; `|` separates two names that hold the same
values; `-` means that transformers has no such tensor and needs none. A third column says what else differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

DETECTOR = "detector_model."  # before the names of a Sam3Model inside a Sam3VideoModel
POINT_LABELS = 4  # rows of the tracker's table: background point, foreground point, two box corners
_NECK = """
0.dconv_2x2_0.@  0.scale_layers.0.@
0.dconv_2x2_1.@  0.scale_layers.2.@
1.dconv_2x2.@    1.scale_layers.0.@
#.conv_1x1.@     #.proj1.@
#.conv_3x3.@     #.proj2.@
"""
_LAYER = """
#.self_attn.in_proj_@          #.self_attn.?_proj.@
#.self_attn.out_proj.@         #.self_attn.o_proj.@
#.cross_attn_image.in_proj_@   #.cross_attn.?_proj.@
#.cross_attn_image.out_proj.@  #.cross_attn.o_proj.@
#.linear#.@                    #.mlp.fc#.@
#.norm#.@                      #.layer_norm#.@
"""
_VISION = """
pos_embed               embeddings.position_embeddings    without_first_row
patch_embed.proj.@      embeddings.patch_embeddings.projection.@
ln_pre.@                layer_norm.@
blocks.#.norm#.@        layers.#.layer_norm#.@
blocks.#.attn.qkv.@     layers.#.attention.?_proj.@
blocks.#.attn.proj.@    layers.#.attention.o_proj.@
blocks.#.attn.freqs_cis -
blocks.#.mlp.fc#.@      layers.#.mlp.fc#.@
"""
_TEXT = """
encoder.positional_embedding                           text_encoder.text_model.embeddings.position_embedding.weight
encoder.token_embedding.weight                         text_encoder.text_model.embeddings.token_embedding.weight
encoder.text_projection                                text_encoder.text_projection.weight    transposed
encoder.transformer.resblocks.#.attn.in_proj_@         text_encoder.text_model.encoder.layers.#.self_attn.?_proj.@
encoder.transformer.resblocks.#.attn.out_proj.@        text_encoder.text_model.encoder.layers.#.self_attn.out_proj.@
encoder.transformer.resblocks.#.ln_#.@                 text_encoder.text_model.encoder.layers.#.layer_norm#.@
encoder.transformer.resblocks.#.mlp.c_fc.@             text_encoder.text_model.encoder.layers.#.mlp.fc1.@
encoder.transformer.resblocks.#.mlp.c_proj.@           text_encoder.text_model.encoder.layers.#.mlp.fc2.@
encoder.ln_final.@                                     text_encoder.text_model.final_layer_norm.@
resizer.@                                              text_projection.@
"""
_GEOMETRY = """
label_embed.weight              label_embed.weight
cls_embed.weight                cls_embed.weight
points_direct_project.@         -
points_pool_project.@           -
points_pos_enc_project.@        -
boxes_direct_project.@          boxes_direct_project.@
boxes_pool_project.@            boxes_pool_project.@
boxes_pos_enc_project.@         boxes_pos_enc_project.@
final_proj.@                    final_proj.@
norm.@                          prompt_layer_norm.@
img_pre_norm.@                  vision_layer_norm.@
encode_norm.@                   output_layer_norm.@
"""
_DECODER = """
layers.#.self_attn.in_proj_@            layers.#.self_attn.?_proj.@
layers.#.self_attn.out_proj.@           layers.#.self_attn.o_proj.@
layers.#.norm2.@                        layers.#.self_attn_layer_norm.@
layers.#.ca_text.in_proj_@              layers.#.text_cross_attn.?_proj.@
layers.#.ca_text.out_proj.@             layers.#.text_cross_attn.o_proj.@
layers.#.catext_norm.@                  layers.#.text_cross_attn_layer_norm.@
layers.#.cross_attn.in_proj_@           layers.#.vision_cross_attn.?_proj.@
layers.#.cross_attn.out_proj.@          layers.#.vision_cross_attn.o_proj.@
layers.#.norm1.@                        layers.#.vision_cross_attn_layer_norm.@
layers.#.linear#.@                      layers.#.mlp.fc#.@
layers.#.norm3.@                        layers.#.mlp_layer_norm.@
norm.@                                  output_layer_norm.@
query_embed.weight                      query_embed.weight
reference_points.weight                 reference_points.weight
bbox_embed.layers.#.@                   box_head.layer%.@
boxRPB_embed_*.layers.#.@               box_rpb_embed_*.layer%.@
ref_point_head.layers.#.@               ref_point_head.layer%.@
presence_token.weight                   presence_token.weight
presence_token_head.layers.#.@          presence_head.layer%.@
presence_token_out_norm.@               presence_layer_norm.@
"""
_MASK_HEAD = """
pixel_decoder.conv_layers.#.@           pixel_decoder.conv_layers.#.@
pixel_decoder.norms.#.@                 pixel_decoder.norms.#.@
mask_predictor.mask_embed.layers.#.@    mask_embedder.layers.#.@
cross_attend_prompt.in_proj_@           prompt_cross_attn.?_proj.@
cross_attend_prompt.out_proj.@          prompt_cross_attn.o_proj.@
cross_attn_norm.@                       prompt_cross_attn_norm.@
semantic_seg_head.@                     semantic_projection.@
instance_seg_head.@                     instance_projection.@
"""
_SCORING = """
prompt_mlp.layers.#.@     text_mlp.layer%.@
prompt_mlp.out_norm.@     text_mlp_out_norm.@
prompt_proj.@             text_proj.@
hs_proj.@                 query_proj.@
"""
_MEMORY = """
maskmem_tpos_enc                                       memory_temporal_positional_encoding
no_mem_embed                                           no_memory_embedding
no_mem_pos_enc                                         no_memory_positional_encoding
no_obj_ptr                                             no_object_pointer
no_obj_embed_spatial                                   occlusion_spatial_embedding_parameter
mask_downsample.@                                      mask_downsample.@
transformer.encoder.layers.#.*.out_proj.@              memory_attention.layers.#.*.o_proj.@
transformer.encoder.layers.#.*.*_proj.@                memory_attention.layers.#.*.*_proj.@
transformer.encoder.layers.#.linear#.@                 memory_attention.layers.#.linear#.@
transformer.encoder.layers.#.norm#.@                   memory_attention.layers.#.layer_norm#.@
transformer.encoder.norm.@                             memory_attention.layer_norm.@
maskmem_backbone.mask_downsampler.encoder.0.@          memory_encoder.mask_downsampler.layers.0.conv.@
maskmem_backbone.mask_downsampler.encoder.1.@          memory_encoder.mask_downsampler.layers.0.layer_norm.@
maskmem_backbone.mask_downsampler.encoder.3.@          memory_encoder.mask_downsampler.layers.1.conv.@
maskmem_backbone.mask_downsampler.encoder.4.@          memory_encoder.mask_downsampler.layers.1.layer_norm.@
maskmem_backbone.mask_downsampler.encoder.6.@          memory_encoder.mask_downsampler.layers.2.conv.@
maskmem_backbone.mask_downsampler.encoder.7.@          memory_encoder.mask_downsampler.layers.2.layer_norm.@
maskmem_backbone.mask_downsampler.encoder.9.@          memory_encoder.mask_downsampler.layers.3.conv.@
maskmem_backbone.mask_downsampler.encoder.10.@         memory_encoder.mask_downsampler.layers.3.layer_norm.@
maskmem_backbone.mask_downsampler.encoder.12.@         memory_encoder.mask_downsampler.final_conv.@
maskmem_backbone.pix_feat_proj.@                       memory_encoder.feature_projection.@
maskmem_backbone.fuser.layers.#.gamma                  memory_encoder.memory_fuser.layers.#.scale
maskmem_backbone.fuser.layers.#.dwconv.@               memory_encoder.memory_fuser.layers.#.depthwise_conv.@
maskmem_backbone.fuser.layers.#.norm.@                 memory_encoder.memory_fuser.layers.#.layer_norm.@
maskmem_backbone.fuser.layers.#.pwconv#.@              memory_encoder.memory_fuser.layers.#.pointwise_conv#.@
maskmem_backbone.out_proj.@                            memory_encoder.projection.@
obj_ptr_proj.layers.0.@                                object_pointer_proj.proj_in.@
obj_ptr_proj.layers.1.@                                object_pointer_proj.layers.0.@
obj_ptr_proj.layers.2.@                                object_pointer_proj.proj_out.@
obj_ptr_tpos_proj.@                                    temporal_positional_encoding_projection_layer.@
"""
_SAM_PROMPT = """
pe_layer.positional_encoding_gaussian_matrix  prompt_encoder.shared_embedding.*|shared_image_embedding.*
point_embeddings.#.weight                     prompt_encoder.point_embed.weight    stacked
not_a_point_embed.weight                      prompt_encoder.not_a_point_embed.weight
no_mask_embed.weight                          prompt_encoder.no_mask_embed.weight
mask_downscaling.0.@                          prompt_encoder.mask_embed.conv1.@
mask_downscaling.1.@                          prompt_encoder.mask_embed.layer_norm1.@
mask_downscaling.3.@                          prompt_encoder.mask_embed.conv2.@
mask_downscaling.4.@                          prompt_encoder.mask_embed.layer_norm2.@
mask_downscaling.6.@                          prompt_encoder.mask_embed.conv3.@
""".replace("*", "positional_embedding")
_SAM_DECODER = """
transformer.layers.#.*.out_proj.@                transformer.layers.#.*.o_proj.@
transformer.layers.#.*.*_proj.@                  transformer.layers.#.*.*_proj.@
transformer.layers.#.norm#.@                     transformer.layers.#.layer_norm#.@
transformer.layers.#.mlp.lin1.@                  transformer.layers.#.mlp.proj_in.@
transformer.layers.#.mlp.lin2.@                  transformer.layers.#.mlp.proj_out.@
transformer.final_attn_token_to_image.out_proj.@ transformer.final_attn_token_to_image.o_proj.@
transformer.final_attn_token_to_image.*_proj.@   transformer.final_attn_token_to_image.*_proj.@
transformer.norm_final_attn.@                    transformer.layer_norm_final_attn.@
iou_token.weight                                 iou_token.weight
mask_tokens.weight                               mask_tokens.weight
obj_score_token.weight                           obj_score_token.weight
output_upscaling.0.@                             upscale_conv1.@
output_upscaling.1.@                             upscale_layer_norm.@
output_upscaling.3.@                             upscale_conv2.@
conv_s#.@                                        conv_s#.@
output_hypernetworks_mlps.#.layers.0.@           output_hypernetworks_mlps.#.proj_in.@
output_hypernetworks_mlps.#.layers.1.@           output_hypernetworks_mlps.#.layers.0.@
output_hypernetworks_mlps.#.layers.2.@           output_hypernetworks_mlps.#.proj_out.@
*_head.layers.0.@                                *_head.proj_in.@
*_head.layers.1.@                                *_head.layers.0.@
*_head.layers.2.@                                *_head.proj_out.@
"""
_PARTS = (  # table, what stands before its names: Meta's, transformers'
    (_VISION, "detector.backbone.vision_backbone.trunk.", "detector_model.vision_encoder.backbone."),
    (_NECK, "detector.backbone.vision_backbone.convs.", "detector_model.vision_encoder.neck.fpn_layers."),
    (_NECK, "detector.backbone.vision_backbone.sam2_convs.", "tracker_neck.fpn_layers."),
    (_TEXT, "detector.backbone.language_backbone.", "detector_model."),
    (_GEOMETRY, "detector.geometry_encoder.", "detector_model.geometry_encoder."),
    (_LAYER, "detector.geometry_encoder.encode.", "detector_model.geometry_encoder.layers."),
    (_LAYER, "detector.transformer.encoder.layers.", "detector_model.detr_encoder.layers."),
    (_DECODER, "detector.transformer.decoder.", "detector_model.detr_decoder."),
    (_MASK_HEAD, "detector.segmentation_head.", "detector_model.mask_decoder."),
    (_SCORING, "detector.dot_prod_scoring.", "detector_model.dot_product_scoring."),
    (_MEMORY, "tracker.", "tracker_model."),
    (_SAM_PROMPT, "tracker.sam_prompt_encoder.", "tracker_model."),
    (_SAM_DECODER, "tracker.sam_mask_decoder.", "tracker_model.mask_decoder."),
)
# What SAM 3.1's file has beside the detector: a tracker of other names and widths, the necks that feed it.
_SAM31_ONLY = re.compile(
    r"tracker\.model\..+|detector\.backbone\.vision_backbone\.(interactive|propagation)_convs\.[0-2]\.[a-z0-9_.]+"
)
_WILDCARDS = {"#": r"(\d+)", "%": r"(\d+)", "*": r"([a-z_0-9]+)", "@": r"(weight|bias)"}


def of_sam31_tracker(name: str) -> bool:
    """Whether a tensor of Meta's belongs to the tracker of SAM 3.1, for which transformers has no model."""
    return _SAM31_ONLY.fullmatch(name) is not None


@dataclass(frozen=True)
class Link:
    """One tensor of Meta's and one of transformers that hold the same values, or part of them."""

    meta: str
    transformers: str
    third: int | None = None  # transformers' tensor is this third (q, k, v) of Meta's rows
    row: int | None = None  # Meta's tensor is this row of transformers'
    transposed: bool = False
    without_first_row: bool = False  # Meta's position table has one row (class token) more in front, in dimension 1


@dataclass(frozen=True)
class _Rule:
    meta: str
    transformers: tuple[str, ...]
    kind: str
    meta_pattern: re.Pattern[str]
    transformers_patterns: tuple[re.Pattern[str], ...]


def links_of_meta(name: str) -> tuple[Link, ...] | None:
    """The tensors of transformers that a tensor of Meta's fills.

    Returns:
        () if it is known and has no counterpart (rotary position tables, projections of point prompts), None if the
        name is none of SAM3's.
    """
    for rule in _rules():
        if found := rule.meta_pattern.fullmatch(name):
            values = list(found.groups())
            return tuple(
                _link(rule, name, _fill(target, values), values, third)
                for third, target in enumerate(rule.transformers)
            )
    return None


def links_of_transformers(name: str) -> tuple[Link, ...] | None:
    """The tensors of Meta's that a tensor of transformers holds, or None if the name is none of SAM3's.

    More than one only for the table of point labels, of which each row is a tensor of its own in Meta's file.
    """
    for rule in _rules():
        for third, (target, pattern) in enumerate(zip(rule.transformers, rule.transformers_patterns, strict=True)):
            if found := pattern.fullmatch(name):
                values = [
                    str(int(v) - 1) if c == "%" else v for v, c in zip(found.groups(), _wild(target), strict=True)
                ]
                if rule.kind == "stacked":
                    rows = [[str(row)] for row in range(POINT_LABELS)]
                    return tuple(_link(rule, _fill(rule.meta, row), name, row, third) for row in rows)
                return (_link(rule, _fill(rule.meta, values), name, values, third),)
    return None


def _link(rule: _Rule, meta: str, transformers: str, values: list[str], third: int) -> Link:
    return Link(
        meta=meta,
        transformers=transformers,
        third=third if rule.kind == "thirds" else None,
        row=int(values[0]) if rule.kind == "stacked" else None,
        transposed=rule.kind == "transposed",
        without_first_row=rule.kind == "without_first_row",
    )


@cache
def _rules() -> tuple[_Rule, ...]:
    rules = []
    for table, meta_prefix, transformers_prefix in _PARTS:
        for line in table.strip().splitlines():
            meta, transformers, *kind = line.split()
            targets: tuple[str, ...] = ()
            if transformers != "-":
                targets = tuple(transformers_prefix + target for target in transformers.split("|"))
            if "?" in transformers:
                kind = ["thirds"]
                targets = tuple(targets[0].replace("?", letter) for letter in "qkv")
            meta = meta_prefix + meta
            patterns = tuple(_pattern(target) for target in targets)
            rules.append(_Rule(meta, targets, kind[0] if kind else "same", _pattern(meta), patterns))
    return tuple(rules)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(_WILDCARDS.get(c, re.escape(c)) for c in template))


def _wild(template: str) -> list[str]:
    return [c for c in template if c in _WILDCARDS]


def _fill(template: str, values: list[str]) -> str:
    """The template with its wildcards replaced by `values`, in order."""
    remaining = iter(values)

    def value(found: re.Match[str]) -> str:
        text = next(remaining)
        return str(int(text) + 1) if found[0] == "%" else text

    return re.sub("[#%*@]", value, template)
