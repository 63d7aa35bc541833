# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels of the semantic target-relation score (section 3.3 of the paper), which were not released.

The score says how much each word has to do with the referred object; its label must then tell "giraffe" from "of" in
"a giraffe in front of the table", for this picture. A frozen BEiT-3 or OneRef reads picture and phrase together, so
that a word already means what it means in this picture. The region is the mean of the patches in the referred box,
each counted by how much of it the box covers, and a word is related to the region as far as the cosine of the two is
high. Only the differences between the words of one phrase say something (all cosines of one tower lie close together),
so they are stretched to [0, 1] within the phrase: 0 is its least related piece, 1 its most related. BOS has no label,
EOS and padding get 0, "not related", as the original's loss, which takes a softmax over all positions, wants.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..modeling_beit3 import Beit3Model
from ..modeling_oneref import OneRefModel, box_coverage


@torch.no_grad()
def semantic_relation_labels(model: Beit3Model | OneRefModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Labels for a batch of B pictures and phrases of T positions.

    Args:
        model: frozen; of BEiT-3 the final hidden states are compared, of OneRef the cross-modal embeddings.
        inputs: `pixel_values`, `input_ids`, `attention_mask` and `box_labels` (cxcywh in [0, 1] of the canvas), as the
            processor gives them.

    Returns:
        float32 `(B, T - 2)` in [0, 1], for positions 1 to T - 2.
    """
    outputs = model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    if isinstance(model, OneRefModel):
        patches, tokens = outputs.patch_embeds, outputs.token_embeds
    else:
        patches, tokens = outputs.vision_last_hidden_state[:, 1:], outputs.text_last_hidden_state
    side = inputs["pixel_values"].shape[-1] // model.config.patch_size
    inside = box_coverage(inputs["box_labels"].float(), (side, side)).flatten(1)  # (B, P)
    region = torch.einsum("bp,bpd->bd", inside, patches.float())
    cosines = torch.cosine_similarity(region[:, None], tokens[:, 1:-1].float(), dim=-1)  # (B, T - 2)
    # Position j is a piece of the phrase if the one behind it is there as well: the last one is EOS.
    pieces = inputs["attention_mask"][:, 2:].bool()
    lowest = cosines.masked_fill(~pieces, torch.inf).amin(-1, keepdim=True)
    highest = cosines.masked_fill(~pieces, -torch.inf).amax(-1, keepdim=True)
    labels = torch.where(highest > lowest, (cosines - lowest) / (highest - lowest), torch.ones_like(cosines))
    return labels.masked_fill(~pieces, 0.0)
