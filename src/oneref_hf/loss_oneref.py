# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Every loss of OneRef as a plain function of tensors, unweighted (the weights live in `OneRefConfig.loss_weights`).

All of them compute in float32 and return a scalar. B is the batch size, P the number of patches, V a vocabulary size.
"""

import torch
from torch import nn


def cxcywh_to_xyxy(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    """Boxes `(..., 4)` from centre and size to corners, in whatever unit they come."""
    center, half_size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([center - half_size, center + half_size], dim=-1)


def box_l1_loss(boxes_cxcywh: torch.Tensor, target_boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    """L1 distance of boxes `(B, 4)`, summed over the four coordinates and averaged over the batch."""
    return (boxes_cxcywh.float() - target_boxes_cxcywh.float()).abs().sum(-1).mean()


def box_giou_loss(boxes_cxcywh: torch.Tensor, target_boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    """1 - generalised IoU (arXiv 1902.09630) of boxes `(B, 4)` pair by pair, averaged over the batch."""
    boxes, targets = cxcywh_to_xyxy(boxes_cxcywh.float()), cxcywh_to_xyxy(target_boxes_cxcywh.float())
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    target_area = (targets[:, 2:] - targets[:, :2]).prod(-1)
    overlap = (torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2])).clamp(min=0)
    hull = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])
    intersection, hull_area = overlap.prod(-1), hull.prod(-1)
    union = area + target_area - intersection
    # Two boxes without any area have neither union nor hull; the floor turns 0/0 into 0 and changes nothing else.
    smallest = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=smallest)
    return (1 - iou + (hull_area - union) / hull_area.clamp(min=smallest)).mean()


def mask_focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """Sigmoid focal loss (arXiv 1708.02002) of maps `(B, ...)`, averaged over positions, then over the batch."""
    logits, targets = logits.flatten(1).float(), targets.flatten(1).float()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    prob = logits.sigmoid()
    prob_of_target = prob * targets + (1 - prob) * (1 - targets)
    alpha_of_target = alpha * targets + (1 - alpha) * (1 - targets)
    return (alpha_of_target * (1 - prob_of_target) ** gamma * cross_entropy).mean()


def mask_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss of maps `(B, ...)` on the sigmoid, smoothed by 1 above and below, averaged over the batch."""
    prob, targets = logits.flatten(1).float().sigmoid(), targets.flatten(1).float()
    overlap = 2 * (prob * targets).sum(-1)
    return (1 - (overlap + 1) / (prob.sum(-1) + targets.sum(-1) + 1)).mean()


def contrastive_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy between normalised embeddings `(B, D)` of matching images and texts.

    Under distributed training all processes contribute, with gradient. Divided by the number of pairs it compares, as
    in the original, which so divides by the batch twice.

    Args:
        logit_scale: logarithm of the inverse temperature, a scalar.
    """
    image_embeds, text_embeds = _gather_with_grad(image_embeds.float()), _gather_with_grad(text_embeds.float())
    logits = logit_scale.float().exp() * image_embeds @ text_embeds.T  # (B, B)
    labels = torch.arange(len(logits), device=logits.device)
    per_image = nn.functional.cross_entropy(logits, labels)
    per_text = nn.functional.cross_entropy(logits.T, labels)
    return (per_image + per_text) / 2 / len(logits)


def _gather_with_grad(embeds: torch.Tensor) -> torch.Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return embeds
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeds))


def visual_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Masked image modelling: cross entropy of `(N, V)` logits against visual codes `(N,)`, mean over N patches.

    It is 0 if no patch is masked.
    """
    if len(labels) == 0:
        return logits.float().sum()
    return nn.functional.cross_entropy(logits.float(), labels)


def visual_relation_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Visual target-relation score: L1 of `(B, P, 4)`, summed over the four values, mean over B and P."""
    return (scores.float() - labels.float()).abs().sum(-1).mean()


def masked_language_loss(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.1, drop_worst_ratio: float = 0.0
) -> torch.Tensor:
    """Masked language modelling: KL divergence from smoothed labels, mean over the masked tokens that count.

    The label keeps `1 - label_smoothing`; the rest is spread evenly over the other V - 1 words. It is 0 if no token is
    masked.

    Args:
        logits: `(N, V)` at the masked positions.
        labels: `(N,)` token ids.
        drop_worst_ratio: share of the tokens, those with the highest loss, that is left out. At least one token
            always counts (the original divides by zero when a single token is masked).
    """
    if len(labels) == 0:
        return logits.float().sum()
    log_prob = logits.float().log_softmax(-1)
    vocab_size = log_prob.shape[-1]
    on_label, elsewhere = 1 - label_smoothing, label_smoothing / (vocab_size - 1)
    # The smoothed distribution has two distinct values, so KL needs the label's log-probability and the row sum only.
    of_label = log_prob.gather(-1, labels[:, None]).squeeze(-1)
    expected_log_prob = (on_label - elsewhere) * of_label + elsewhere * log_prob.sum(-1)
    probs = torch.tensor([on_label, elsewhere], dtype=log_prob.dtype, device=log_prob.device)
    negative_entropy = (torch.special.xlogy(probs, probs) * probs.new_tensor([1, vocab_size - 1])).sum()
    losses = negative_entropy - expected_log_prob
    if drop_worst_ratio > 0:
        kept = max(int(len(losses) * (1 - drop_worst_ratio)), 1)
        losses = losses.topk(kept, largest=False).values
    return losses.mean()


def semantic_relation_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Semantic target-relation score: KL divergence between `(B, L)` distributions over words, mean over the batch.

    `scores` are already a softmax over positions; the original takes a second one here, and so does this.
    """
    return nn.functional.kl_div(scores.float().log_softmax(-1), labels.float().softmax(-1), reduction="batchmean")


__all__ = [
    "box_giou_loss",
    "box_l1_loss",
    "contrastive_loss",
    "cxcywh_to_xyxy",
    "mask_dice_loss",
    "mask_focal_loss",
    "masked_language_loss",
    "semantic_relation_loss",
    "visual_relation_loss",
    "visual_token_loss",
]
