# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics against the original's figures and against cases worked out by hand."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from oneref_hf import metrics
from oneref_hf.metrics import (
    RecMetric,
    ResMetric,
    box_iou,
    canvas_masks,
    mask_iou,
    mask_overlap,
    rec_accuracy,
    res_iou,
    res_scores,
    score_auroc,
)


# One of several processes: prints what each way of scoring 39 of the golden samples together gives, per task.
WORKER = """
import json, sys
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from oneref_hf.metrics import RecMetric, ResMetric, load_metric

cache, golden = sys.argv[1], load_file(sys.argv[2])
accelerator = Accelerator(cpu=True)
rank, processes = accelerator.process_index, accelerator.num_processes
assert processes == 2
for task, names, kind in (
    ("rec", ("metrics.pred_boxes", "metrics.gt_boxes"), RecMetric),
    ("res", ("metrics.mask_logits", "metrics.gt_masks"), ResMetric),
):
    predictions, references = (golden[name][:39] for name in names)
    together = load_metric(task, num_process=processes, process_id=rank, experiment_id="test", cache_dir=cache)
    gathered = load_metric(task, process_id=0, experiment_id=f"gathered-{rank}", cache_dir=cache)
    summed = kind()
    for batch in torch.arange(39)[rank::processes].split(4):
        together.add_batch(predictions=predictions[batch], references=references[batch])
        summed.update(predictions[batch], references[batch])
    summed.sums = accelerator.reduce(summed.sums, "sum")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(predictions, references), batch_size=4)
    for batch in accelerator.prepare(loader):  # whose last batch is filled up with samples of the first
        pairs = accelerator.gather_for_metrics(tuple(batch))
        gathered.add_batch(predictions=pairs[0], references=pairs[1])
    scores = {"together": together.compute(), "gathered": gathered.compute(), "summed": summed.compute()}
    with open(f"{cache}/{task}-{rank}.json", "w") as file:
        json.dump(scores, file)
accelerator.end_training()
"""

# Four masks of ten pixels in a row: intersection / union are 5/10, 7/10, 0/10 and 0/0.
PRED_MASKS = torch.zeros(4, 1, 10, dtype=torch.bool)
TARGET_MASKS = torch.zeros(4, 1, 10, dtype=torch.bool)
PRED_MASKS[0, 0, :5] = PRED_MASKS[1, 0, :7] = PRED_MASKS[2, 0, :4] = True
TARGET_MASKS[0, 0, :] = TARGET_MASKS[1, 0, :] = TARGET_MASKS[2, 0, 4:] = True


@pytest.fixture(scope="module")
def boxes(golden):
    return golden["metrics.pred_boxes"], golden["metrics.gt_boxes"]


@pytest.fixture(scope="module")
def masks(golden):
    return golden["metrics.mask_logits"], golden["metrics.gt_masks"]


def test_boxes_equal_the_original(boxes, golden, golden_facts):
    torch.testing.assert_close(box_iou(*boxes), golden["metrics.box_iou"], rtol=0, atol=1e-6)
    assert rec_accuracy(*boxes) == pytest.approx(golden_facts["metrics"]["accuracy@0.5"], abs=1e-9)


def test_masks_equal_the_original(masks, golden, golden_facts):
    torch.testing.assert_close(mask_iou(*masks), golden["metrics.mask_iou"], rtol=0, atol=1e-6)
    scores = res_iou(*masks)
    assert scores.keys() == {"miou", "oiou"}
    for name, value in scores.items():
        assert value == pytest.approx(golden_facts["metrics"][name], abs=1e-6)


def test_logits_and_the_masks_made_of_them_score_alike(masks):
    logits, targets = masks
    binary = canvas_masks(logits, targets.shape[-2:])
    assert binary.dtype == torch.bool and binary.shape == targets.shape
    assert res_scores(binary, targets) == res_scores(logits, targets)
    assert res_scores(binary[:, 0].numpy(), targets[:, 0].numpy()) == res_scores(logits, targets)


def test_canvas_masks_cut_before_upsampling():
    # One positive cell among strong negatives: cut first, its bilinear skirt stays positive one pixel further out.
    logits = torch.full((1, 3, 3), -50.0)
    logits[0, 1, 1] = 0.1
    mask = canvas_masks(logits, (6, 6))
    expected = torch.zeros(1, 6, 6, dtype=torch.bool)
    expected[0, 1:5, 1:5] = True
    assert torch.equal(mask, expected)
    upsampled_first = torch.nn.functional.interpolate(logits[None], size=(6, 6), mode="bilinear")[0] > 0
    assert upsampled_first.sum() < expected.sum()


def test_box_formats_and_edges_by_hand():
    # Half of the first box overlaps; the second pair touches; the third has no area at all.
    pred = [[0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]]
    target = [[1, 0, 3, 2], [1, 0, 2, 1], [3, 3, 3, 3]]
    assert box_iou(pred, target, box_format="xyxy").tolist() == pytest.approx([1 / 3, 0, 0])
    # The predicted corners leave the canvas by 0.1 on the left and are clamped; the target is not.
    clamped = box_iou([[0.1, 0.5, 0.4, 0.5]], [[0.1, 0.5, 0.4, 0.5]]).item()
    assert clamped == pytest.approx(0.3 / 0.4, abs=1e-6)
    assert (
        rec_accuracy([[0.5, 0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5, 1.0]], threshold=0.5) == 1.0
    )  # exactly at the threshold


def test_half_precision_boxes_are_scored_in_float32():
    pred = torch.tensor([[0.5, 0.5, 0.3, 0.3]], dtype=torch.bfloat16)
    assert box_iou(pred, pred).dtype == torch.float32


def test_masks_by_hand():
    assert mask_iou(PRED_MASKS, TARGET_MASKS).tolist() == pytest.approx([0.5, 0.7, 0, 0])
    scores = res_scores(PRED_MASKS, TARGET_MASKS)
    assert scores["miou"] == pytest.approx((0.5 + 0.7) / 4)
    assert scores["oiou"] == pytest.approx(12 / 30)
    shares = [scores[f"precision@{t}"] for t in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert shares == [0.5, 0.25, 0.25, 0, 0]  # 7 of 10 pixels reach 0.7
    assert scores["samples"] == 4


def test_masks_as_the_processor_returns_them_or_mirrored():
    masks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    targets = masks.roll(1, -1)
    expected = mask_overlap(masks, targets)
    for form in (list(masks), masks.flip(-1).numpy()[..., ::-1], [mask.numpy() for mask in masks]):
        for one, other in zip(mask_overlap(form, list(targets)), expected):
            assert torch.equal(one, other)


def test_empty_unions_and_zero_samples():
    empty = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert mask_iou(empty, empty).tolist() == [0, 0]
    assert res_iou(empty, empty) == {"miou": 0.0, "oiou": 0.0}
    none = ResMetric().compute()
    assert none["samples"] == 0 and math.isnan(none["miou"]) and math.isnan(none["oiou"])
    assert math.isnan(RecMetric().compute()["accuracy@0.5"])
    assert math.isnan(rec_accuracy(torch.zeros(0, 4), torch.zeros(0, 4)))
    assert math.isnan(res_iou(torch.zeros(0, 2, 2), torch.zeros(0, 4, 4, dtype=torch.bool))["miou"])


@pytest.mark.parametrize("cuts", [(40,), (7, 33), (0, 13, 13, 14)])
def test_accumulated_batches_equal_one_call(boxes, masks, cuts):
    """Any split over batches and processes, empty shares included, gives the figures of the whole."""
    rec, res = RecMetric(), ResMetric()
    for sizes in zip((0, *np.cumsum(cuts)), np.cumsum(cuts)):
        part = slice(*sizes)
        rec_part, res_part = RecMetric(), ResMetric()
        rec_part.update(boxes[0][part], boxes[1][part])
        res_part.update(masks[0][part], masks[1][part])
        rec.sums = rec.sums + rec_part.sums  # what a sum over processes does
        res.merge(res_part)
    whole = RecMetric()
    whole.update(*boxes)
    assert rec.compute() == whole.compute()
    assert rec.compute()["mean_iou"] == pytest.approx(box_iou(*boxes).double().mean().item(), abs=1e-9)
    assert res.compute() == res_scores(*masks)
    res.reset()
    assert res.compute()["samples"] == 0


def test_stored_predictions_give_the_same_scores(boxes, masks):
    rec, res = RecMetric(), ResMetric()
    rec.update_iou(box_iou(*boxes))
    intersections, unions = metrics.mask_overlap(*masks)
    res.update_overlap(intersections.tolist(), unions.tolist())
    assert rec.compute()["accuracy@0.5"] == pytest.approx(rec_accuracy(*boxes))
    assert res.compute() == res_scores(*masks)


@pytest.mark.parametrize("task", ["rec", "res"])
def test_evaluate_metric(task, boxes, masks, tmp_path, golden_facts):
    metric = metrics.load_metric(task, cache_dir=str(tmp_path))
    predictions, references = boxes if task == "rec" else masks
    for start in range(0, 40, 16):
        metric.add_batch(predictions=predictions[start : start + 16], references=references[start : start + 16])
    scores = metric.compute()
    assert scores["samples"] == 40
    for name in {"rec": ["accuracy@0.5"], "res": ["miou", "oiou"]}[task]:
        assert scores[name] == pytest.approx(golden_facts["metrics"][name], abs=1e-6)
    assert metric.primary_metric in scores
    one = metrics.load_metric(task, cache_dir=str(tmp_path))
    one.add(prediction=predictions[0], reference=references[0])
    kind = RecMetric() if task == "rec" else ResMetric()
    kind.update(predictions[:1], references[:1])
    assert one.compute() == kind.compute()


def test_two_processes_score_exactly_what_one_does(boxes, masks, fixtures_dir, tmp_path):
    """By the protocol of `evaluate`, by gathering (uneven batches), and by summing; to the last bit."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "worker.py"]
    (tmp_path / "worker.py").write_text(WORKER)
    finished = subprocess.run(
        [*command, str(tmp_path), str(fixtures_dir / "golden.safetensors")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    for task, kind, pairs in (("rec", RecMetric(), boxes), ("res", ResMetric(), masks)):
        kind.update(*(values[:39] for values in pairs))
        first, second = (json.loads((tmp_path / f"{task}-{rank}.json").read_text()) for rank in range(2))
        assert kind.compute()["samples"] == 39
        assert first == dict.fromkeys(("together", "gathered", "summed"), kind.compute())
        assert second == {**first, "together": None}  # `evaluate` answers on its main process alone


def test_primary_metrics_are_computed():
    for kind in (RecMetric, ResMetric):
        assert kind.primary_metric in kind().compute()


def test_import_is_light():
    code = "import sys, oneref_hf.metrics; print({'evaluate', 'datasets', 'pycocotools', 'spacy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: box_iou(torch.zeros(2, 4), torch.zeros(3, 4)), r"\(N, 4\), not \(2, 4\) and \(3, 4\)"),
        (lambda: box_iou(torch.zeros(4), torch.zeros(4)), r"\(N, 4\)"),
        (lambda: box_iou(torch.zeros(1, 4), torch.zeros(1, 4), box_format="xywh"), "'cxcywh' or 'xyxy'"),
        (lambda: mask_iou(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)), "2 predicted masks but 3 target"),
        (lambda: mask_iou(torch.zeros(1, 2, 2).bool(), torch.zeros(1, 4, 4)), r"size \(4, 4\), not \(2, 2\)"),
        (lambda: mask_iou(torch.zeros(2, 2), torch.zeros(2, 2)), r"\(N, H, W\)"),
        (lambda: ResMetric().update_overlap([1, 2], [3]), "2 intersections but 1 unions"),
        (lambda: RecMetric().merge(RecMetric((0.7,))), "same thresholds"),
        (lambda: ResMetric().merge(RecMetric()), "one kind"),
        (lambda: metrics.load_metric("vqa"), "rec and res, not for 'vqa'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_score_auroc_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (200,), generator=generator) / 20  # many ties
    correct = torch.rand(200, generator=generator) < 0.3 + 0.5 * scores
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[correct].tolist() for b in scores[~correct].tolist()]
    assert score_auroc(scores, correct) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert score_auroc([0.1, 0.2, 0.9], [False, False, True]) == 1
    assert score_auroc([0.1, 0.2, 0.9], [True, True, False]) == 0
    assert math.isnan(score_auroc([0.1, 0.2], [True, True])) and math.isnan(score_auroc([], []))
