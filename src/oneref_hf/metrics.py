# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Box accuracy (REC) and mask IoU (RES) as plain functions, accumulators and `evaluate` metrics.

The numbers follow the paper's protocol (IoU on the padded square canvas), but every sample counts once and all sums
are kept, so that the result does not depend on the number of processes: the original printed one rank's oIoU.
Two conventions hold throughout: the IoU of an empty union (nothing predicted, nothing annotated) is 0, because a
referring expression always means something; a score over zero samples is NaN.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from .letterbox_oneref import canvas_masks


PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
# IoU is summed in whole steps of this size: sums of up to 8 million samples are then exact in float64, in any order.
_IOU_STEP = 2.0**-30


def box_iou(pred_boxes, target_boxes, box_format: str = "cxcywh") -> torch.Tensor:
    """IoU of each predicted box with the target box of the same row.

    Args:
        pred_boxes, target_boxes: `(N, 4)`, tensors, arrays or nested lists.
        box_format: `"cxcywh"` (the model's outputs and labels) is centre and size in [0, 1] of the canvas, and the
            corners of the *predicted* box are clamped to [0, 1], as the original does before scoring. `"xyxy"` is
            corners in any unit (pixels of the picture, say), taken as they are.

    Returns:
        `(N,)` in [0, 1], float32 or float64; 0 where both boxes have no area.

    Raises:
        ValueError: if a shape is not `(N, 4)`, the two differ, or the format is unknown.
    """
    pred, target = _floating(pred_boxes), _floating(target_boxes)
    if pred.ndim != 2 or pred.shape != target.shape or pred.shape[-1] != 4:
        raise ValueError(
            f"Predicted and target boxes must both be (N, 4), not {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if box_format == "cxcywh":
        pred, target = _corners(pred).clamp(0, 1), _corners(target)
    elif box_format != "xyxy":
        raise ValueError(f"box_format must be 'cxcywh' or 'xyxy', not {box_format!r}.")
    target = target.to(pred)
    shared = (torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])).clamp(min=0)
    intersection = shared.prod(dim=1)
    union = _area(pred) + _area(target) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def rec_accuracy(pred_boxes, target_boxes, threshold: float = 0.5, box_format: str = "cxcywh") -> float:
    """Share of rows whose `box_iou` is at least `threshold`: the paper's REC accuracy. NaN for zero rows."""
    iou = box_iou(pred_boxes, target_boxes, box_format)
    return (iou >= threshold).double().mean().item()


def mask_overlap(pred_masks, target_masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection and union of each predicted mask with its target, in pixels.

    Args:
        pred_masks: `(N, H, W)` or `(N, 1, H, W)`, or a list of N masks of one size. Bool or integer: masks of the
            target's size, non-zero = foreground. Floating point: logits of any size, brought to the target's by
            `canvas_masks`.
        target_masks: the same layout, non-zero = foreground.

    Returns:
        two int64 tensors `(N,)`.

    Raises:
        ValueError: if batch sizes, or the sizes of two binary masks, differ.
    """
    pred, target = _planes(pred_masks, "pred_masks"), _planes(target_masks, "target_masks") != 0
    if pred.shape[0] != target.shape[0]:
        raise ValueError(f"mask_overlap got {pred.shape[0]} predicted masks but {target.shape[0]} target masks.")
    pred = canvas_masks(pred, target.shape[1:]) if pred.is_floating_point() else pred != 0
    if pred.shape != target.shape:
        raise ValueError(
            f"Binary masks must have the target's size {tuple(target.shape[1:])}, not {tuple(pred.shape[1:])}; "
            "resize them, or pass the logits."
        )
    target = target.to(pred.device)
    return (pred & target).sum(dim=(1, 2)), (pred | target).sum(dim=(1, 2))


def mask_iou(pred_masks, target_masks) -> torch.Tensor:
    """IoU of each predicted mask with its target (inputs as in `mask_overlap`), float32 `(N,)`."""
    return _overlap_iou(*mask_overlap(pred_masks, target_masks)).float()


def res_iou(pred_masks, target_masks) -> dict[str, float]:
    """`miou` (mean of the samples' IoU) and `oiou` (sum of intersections over sum of unions, also called cIoU)."""
    scores = res_scores(pred_masks, target_masks)
    return {"miou": scores["miou"], "oiou": scores["oiou"]}


def res_scores(pred_masks, target_masks) -> dict[str, float]:
    """`ResMetric` for masks that fit in one call: `miou`, `oiou`, `precision@0.5` ... `precision@0.9`, `samples`."""
    metric = ResMetric()
    metric.update(pred_masks, target_masks)
    return metric.compute()


def score_auroc(scores, correct) -> float:
    """How well scores tell right answers from wrong ones: the area under the ROC curve.

    It is the chance that a right answer has a higher score than a wrong one, ties counting half: 0.5 is no better than
    guessing, 1 is perfect.

    Args:
        scores: `(N,)`, any order-preserving scale.
        correct: bool `(N,)`.

    Returns:
        in [0, 1]; NaN where all answers are right, or none is.
    """
    scores = torch.as_tensor(scores, dtype=torch.float64)
    correct = torch.as_tensor(correct, dtype=torch.bool)
    right, wrong = scores[correct], scores[~correct].sort().values
    below, not_above = (torch.searchsorted(wrong, right.contiguous(), right=side).sum() for side in (False, True))
    return _ratio((below + not_above).item() / 2, len(right) * len(wrong))


class _SummedMetric:
    """A score made of sums over samples. `sums` is the whole state: add two of them and you have the union's state.

    To finish a distributed evaluation, replace `sums` by its sum over the processes, for example
    `metric.sums = accelerator.reduce(metric.sums.to(accelerator.device), "sum")`. All sums are exact in float64:
    counts and pixel areas are whole numbers, and IoU is rounded to `_IOU_STEP`. So batches, processes and their order
    make no difference, not even in the last bit.
    """

    _leading = 2  # sums in front of the hits: number of samples, sum of IoU

    def __init__(self, thresholds: tuple[float, ...]):
        self.thresholds = tuple(thresholds)
        self.reset()

    def reset(self) -> None:
        """Forgets every sample."""
        self.sums = torch.zeros(self._leading + len(self.thresholds), dtype=torch.float64)

    def merge(self, other: _SummedMetric) -> None:
        """Adds the samples of another metric of the same kind and thresholds."""
        if type(other) is not type(self) or other.thresholds != self.thresholds:
            raise ValueError(
                f"Only metrics of one kind and with the same thresholds can be merged, not {type(self).__name__} "
                f"{self.thresholds} and {type(other).__name__} {getattr(other, 'thresholds', None)}."
            )
        self.sums = self.sums + other.sums.to(self.sums.device)

    def _add(self, iou: torch.Tensor, *leading: torch.Tensor) -> None:
        iou = iou.reshape(-1)
        hits = [(iou >= threshold).sum() for threshold in self.thresholds]
        steps = (iou.double() / _IOU_STEP).round()
        terms = [torch.tensor(len(iou)), steps.sum() * _IOU_STEP, *(x.sum() for x in leading), *hits]
        self.sums = self.sums + torch.stack([term.double().to(self.sums.device) for term in terms])

    def _shares(self, name: str) -> tuple[list[float], dict[str, float]]:
        """The leading sums and, per threshold, the share of samples that reach it."""
        values = self.sums.tolist()
        leading, hits = values[: self._leading], values[self._leading :]
        return leading, {f"{name}@{t}": _ratio(hit, leading[0]) for t, hit in zip(self.thresholds, hits)}


class RecMetric(_SummedMetric):
    """Box accuracy and mean box IoU over any number of batches and processes.

    Args:
        thresholds: IoU at which a box counts as right (at least that much).
        box_format: of `update`, as in `box_iou`.
    """

    primary_metric = "accuracy@0.5"

    def __init__(self, thresholds: tuple[float, ...] = (0.5,), box_format: str = "cxcywh"):
        super().__init__(thresholds)
        self.box_format = box_format

    def update(self, pred_boxes, target_boxes) -> torch.Tensor:
        """Adds a batch of boxes `(N, 4)`; returns their IoU `(N,)`."""
        iou = box_iou(pred_boxes, target_boxes, self.box_format)
        self._add(iou)
        return iou

    def update_iou(self, iou) -> None:
        """Adds samples whose IoU `(N,)` is known already, for example from stored predictions."""
        self._add(_floating(iou))

    def compute(self) -> dict[str, float]:
        """`accuracy@T` for every threshold, `mean_iou` and `samples`; NaN scores where there are no samples."""
        (samples, iou), accuracy = self._shares("accuracy")
        return {**accuracy, "mean_iou": _ratio(iou, samples), "samples": int(samples)}


class ResMetric(_SummedMetric):
    """Mean and overall mask IoU and precision at fixed IoU over any number of batches and processes.

    Args:
        thresholds: IoU at which a mask counts for `precision@T` (at least that much).
    """

    primary_metric = "miou"
    _leading = 4  # samples, sum of IoU, sum of intersections, sum of unions

    def __init__(self, thresholds: tuple[float, ...] = PRECISION_THRESHOLDS):
        super().__init__(thresholds)

    def update(self, pred_masks, target_masks) -> torch.Tensor:
        """Adds a batch of masks (as in `mask_overlap`); returns their IoU `(N,)`."""
        return self.update_overlap(*mask_overlap(pred_masks, target_masks))

    def update_overlap(self, intersections, unions) -> torch.Tensor:
        """Adds samples by their pixel counts `(N,)`, for example from stored predictions; returns their IoU `(N,)`.

        Raises:
            ValueError: if there are not as many unions as intersections.
        """
        intersections, unions = torch.as_tensor(intersections), torch.as_tensor(unions)
        if intersections.shape != unions.shape:
            raise ValueError(f"Got {intersections.numel()} intersections but {unions.numel()} unions.")
        iou = _overlap_iou(intersections, unions)
        self._add(iou, intersections, unions)
        return iou

    def compute(self) -> dict[str, float]:
        """`miou`, `oiou` (0 if every union is empty), `precision@T` and `samples`; NaN scores without samples."""
        (samples, iou, intersection, union), precision = self._shares("precision")
        oiou = 0.0 if samples and not union else _ratio(intersection, union)
        return {"miou": _ratio(iou, samples), "oiou": oiou, **precision, "samples": int(samples)}


def load_metric(task: str, **kwargs):
    """An `evaluate.Metric` that computes what `RecMetric` or `ResMetric` does.

    Args:
        task: `"rec"`: predictions and references are boxes `(N, 4)`, cxcywh on the canvas.
            `"res"`: they are masks as in `mask_overlap`; only their pixel counts are kept.
        kwargs: those of `evaluate.Metric` (`num_process`, `process_id`, `experiment_id`, `cache_dir`, ...).

    Returns:
        the metric; its `primary_metric` names the figure to select models by.

    Raises:
        ImportError: if `evaluate` is not installed (`pip install oneref-hf[train]`).
        ValueError: if the task is unknown.
    """
    classes = _evaluate_classes()
    if task not in classes:
        raise ValueError(f"There is a metric for the tasks {' and '.join(sorted(classes))}, not for {task!r}.")
    return classes[task](**kwargs)


@functools.cache
def _evaluate_classes() -> dict[str, type]:
    """The metric classes. Made on first use: importing `evaluate` takes seconds and inference does not need it."""
    try:
        import datasets
        import evaluate
    except ImportError as error:
        raise ImportError("load_metric needs evaluate and datasets: pip install oneref-hf[train].") from error

    def info(description: str, inputs: str, feature) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": feature, "references": feature})
        return evaluate.MetricInfo(description=description, citation="", inputs_description=inputs, features=features)

    class OneRefRec(evaluate.Metric):
        primary_metric = RecMetric.primary_metric

        def _info(self):
            box = datasets.Sequence(datasets.Value("float32"), length=4)
            return info("Referring expression comprehension: box accuracy.", "Boxes cxcywh in [0, 1].", box)

        def _compute(self, predictions, references):
            metric = RecMetric()
            metric.update(predictions, references)
            return metric.compute()

    class OneRefRes(evaluate.Metric):
        primary_metric = ResMetric.primary_metric

        def _info(self):
            # Masks never reach the Arrow cache: intersections travel as predictions, unions as references.
            return info("Referring expression segmentation: mask IoU.", "Masks.", datasets.Value("int64"))

        def add_batch(self, *, predictions=None, references=None, **kwargs):
            """Adds a batch of masks, reduced to their pixel counts."""
            intersections, unions = mask_overlap(predictions, references)
            super().add_batch(predictions=intersections.tolist(), references=unions.tolist(), **kwargs)

        def add(self, *, prediction=None, reference=None, **kwargs):
            """Adds one pair of masks `(H, W)`."""
            self.add_batch(
                predictions=torch.as_tensor(prediction)[None], references=torch.as_tensor(reference)[None], **kwargs
            )

        def _compute(self, predictions, references):
            metric = ResMetric()
            metric.update_overlap(list(predictions), list(references))
            return metric.compute()

    return {"rec": OneRefRec, "res": OneRefRes}


def _floating(values) -> torch.Tensor:
    """As a tensor of at least float32 (half precision would round IoU across a threshold)."""
    values = torch.as_tensor(values)
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _corners(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _area(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(dim=1)


def _tensor(values) -> torch.Tensor:
    # A copy where an array is turned or mirrored, which torch cannot read.
    return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)


def _planes(masks, name: str) -> torch.Tensor:
    """`(N, H, W)` from that or `(N, 1, H, W)`."""
    if isinstance(masks, (list, tuple)):
        masks = torch.stack([_tensor(mask) for mask in masks]) if masks else torch.zeros(0, 0, 0, dtype=torch.bool)
    masks = _tensor(masks)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3:
        raise ValueError(f"{name} must have the shape (N, H, W) or (N, 1, H, W), not {tuple(masks.shape)}.")
    return masks


def _overlap_iou(intersections: torch.Tensor, unions: torch.Tensor) -> torch.Tensor:
    """float64, so that 7 of 10 pixels reach a threshold of 0.7."""
    return torch.where(unions > 0, intersections.double() / unions.clamp(min=1).double(), 0.0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
