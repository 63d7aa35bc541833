# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Each loss against an independent computation: Transformers' own, PyTorch's, or the definition written out."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from transformers.loss.loss_for_object_detection import dice_loss, generalized_box_iou, sigmoid_focal_loss

from oneref_hf.loss_oneref import (
    box_giou_loss,
    box_l1_loss,
    contrastive_loss,
    cxcywh_to_xyxy,
    mask_dice_loss,
    mask_focal_loss,
    masked_language_loss,
    semantic_relation_loss,
    visual_relation_loss,
    visual_token_loss,
)


@pytest.fixture
def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers, sizes = torch.rand(2, 50, 2, generator=generator), torch.rand(2, 50, 2, generator=generator) * 0.8 + 0.01
    return torch.cat([centers, sizes], dim=-1).unbind(0)


def test_box_losses(boxes):
    pred, target = boxes
    expected = nn.functional.l1_loss(pred, target, reduction="sum") / len(pred)
    torch.testing.assert_close(box_l1_loss(pred, target), expected)
    pairwise = generalized_box_iou(cxcywh_to_xyxy(pred), cxcywh_to_xyxy(target))
    torch.testing.assert_close(box_giou_loss(pred, target), (1 - pairwise.diag()).mean())
    torch.testing.assert_close(box_giou_loss(pred, pred), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_boxes_without_area_give_finite_gradients():
    pred = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.3]], requires_grad=True)
    loss = box_giou_loss(pred, torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.8, 0.8, 0.0, 0.0]]))
    loss.backward()
    assert loss.isfinite() and pred.grad.isfinite().all()


def test_mask_losses():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 7, 9) * 3, (torch.rand(4, 7, 9) > 0.7).float()
    flat, flat_targets = logits.flatten(1), targets.flatten(1)
    torch.testing.assert_close(mask_focal_loss(logits, targets), sigmoid_focal_loss(flat, flat_targets, 4))
    torch.testing.assert_close(mask_dice_loss(logits, targets), dice_loss(flat, flat_targets, 4))


def test_losses_compute_in_float32():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 64, 64), torch.rand(2, 64, 64) > 0.5
    for loss in (mask_focal_loss, mask_dice_loss):
        expected = loss(logits.bfloat16().float(), targets)
        assert torch.equal(loss(logits.bfloat16(), targets), expected)


def test_masked_language_loss_equals_the_original(golden, golden_facts):
    logits, targets = golden["mlm_loss.logits"], golden["mlm_loss.targets"]
    facts = golden_facts["mlm_loss"]
    assert masked_language_loss(logits, targets).item() == pytest.approx(facts["step_12000"], rel=1e-5)
    dropped = masked_language_loss(logits, targets, drop_worst_ratio=0.2)
    assert dropped.item() == pytest.approx(facts["step_12001"], rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_masked_language_loss_is_a_divergence(label_smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 11), torch.randint(11, (6,))
    smoothed = torch.full((6, 11), label_smoothing / 10)
    smoothed[torch.arange(6), labels] = 1 - label_smoothing
    expected = nn.functional.kl_div(logits.log_softmax(-1), smoothed, reduction="batchmean")
    torch.testing.assert_close(masked_language_loss(logits, labels, label_smoothing), expected)


def test_dropping_the_worst_always_leaves_one():
    logits = torch.randn(1, 11)
    kept = masked_language_loss(logits, torch.tensor([3]), drop_worst_ratio=0.2)
    assert kept == masked_language_loss(logits, torch.tensor([3]))


def test_nothing_masked_is_no_loss():
    for loss in (masked_language_loss, visual_token_loss, partial(masked_language_loss, drop_worst_ratio=0.2)):
        logits = torch.randn(0, 7, requires_grad=True)
        value = loss(logits, torch.zeros(0, dtype=torch.long))
        value.backward()
        assert value == 0 and logits.grad.shape == (0, 7)


def test_relation_losses():
    scores, labels = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]]]), torch.tensor([[[1.0, 0, 3, 5], [0, 0, 0, 1]]])
    assert visual_relation_loss(scores, labels).item() == pytest.approx((3 + 1) / 2)
    distribution, other = torch.rand(2, 5).softmax(-1), torch.rand(2, 5)
    expected = (other.softmax(-1) * (other.log_softmax(-1) - distribution.log_softmax(-1))).sum() / 2
    torch.testing.assert_close(semantic_relation_loss(distribution, other), expected)


CONTRASTIVE_ON_TWO_PROCESSES = """
import sys

import torch
import torch.distributed as dist

from oneref_hf.loss_oneref import contrastive_loss

rank, store = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
images, texts = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1).requires_grad_() for _ in range(2))
scale = torch.tensor(2.0, requires_grad=True)
alone = contrastive_loss(images, texts, scale)
expected = torch.autograd.grad(alone, (images, texts, scale))

dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
rows = slice(3 * rank, 3 * rank + 3)
mine = [value.detach()[rows].requires_grad_() for value in (images, texts)]
together = contrastive_loss(*mine, scale)
torch.testing.assert_close(together, alone)
found = torch.autograd.grad(together, (*mine, scale))
# DistributedDataParallel averages over the two processes, so each process must hold twice its share.
for index in range(2):
    torch.testing.assert_close(found[index], 2 * expected[index][rows])
torch.testing.assert_close(found[2], expected[2])
print("equal", flush=True)
dist.destroy_process_group()
"""


def test_contrastive_loss_is_the_same_on_two_processes_with_gradient(tmp_path):
    command = [sys.executable, "-c", CONTRASTIVE_ON_TWO_PROCESSES]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        # What a process says counts, for PyTorch aborts now and then when it takes the connection down.
        stdout, stderr = worker.communicate(timeout=1200)
        assert stdout.strip() == "equal", stderr


def test_contrastive_loss_by_definition():
    torch.manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    logits = images @ texts.T * 7
    per_image = -logits.log_softmax(1).diag().mean()
    per_text = -logits.log_softmax(0).diag().mean()
    expected = (per_image + per_text) / 2 / 4
    torch.testing.assert_close(contrastive_loss(images, texts, torch.tensor(7.0).log()), expected)
