# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of a model on referring data sets, from the shards that `prediction.py` writes.

Everything is computed from the stored shards, in their order, so that a run that was interrupted, or made by another
number of processes, gives the same table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .data.loading import ReferringData
from .data.records import SEGMENTATIONS, undecoded
from .metrics import RecMetric, ResMetric, score_auroc
from .prediction import PROTOCOLS, PredictionError, Run, Scoring, predict, segments, write_malformed


TASKS = ("rec", "res")
# Upper ends of the groups of phrases by number of words.
_LENGTH_GROUPS = {"1-5": 5, "6-7": 7, "8-10": 10, "11+": float("inf")}
PRIMARY_METRICS = {"rec": RecMetric.primary_metric, "res": ResMetric.primary_metric}
_SCORED_COLUMNS = [
    "index",
    "phrase",
    "source",
    "expression_type",
    "problem",
    "score",
    "box_iou",
    "mask_intersection",
    "mask_union",
]
_LOOKED_AT = 100
_WORST = 12


@dataclass(frozen=True)
class WorstCase:
    """A record with a low IoU: `record` as loaded (pictures not decoded), `row` of its shard."""

    split: str
    task: str
    iou: float
    record: dict
    row: dict


@dataclass(frozen=True)
class SplitEvaluation:
    """What the main process knows of one split.

    scores: `unreadable` and `malformed` (records and rows left out, up to the limit of the run), `samples` (records
        with an answer), the scores of each task (`"rec"`: `accuracy@0.5`, `mean_iou` and, if some are right and some
        wrong, `score_auroc`; `"res"`: `miou`, `oiou`, `precision@0.5` ...; shares in [0, 1], with the `samples` they
        are of), and both again under `by_phrase_length` and `by_expression_type`.
    sources: the data sets that the records come from.
    worst: the cases with the lowest IoU, lowest first.
    """

    scores: dict
    sources: list[str]
    worst: list[WorstCase]


def evaluate_split(
    model,
    processor,
    data: ReferringData,
    folder: str | Path,
    *,
    split: str,
    accelerator,
    protocol: str = "canvas",
    tasks: Iterable[str] | None = None,
    run: Run | None = None,
) -> SplitEvaluation | None:
    """Predicts one split into `folder`, or continues there, and scores it. All processes call it alike.

    Args:
        model, processor: as `prediction.load_model` gives them.
        data: as `data.loading.open_referring_data` gives it.
        protocol: `"canvas"`, the paper's, or `"picture"`; see `prediction.Scoring`.
        tasks: `"rec"`, `"res"` or both; by default whatever the model can do and the data have targets for.

    Returns:
        the scores on the main process, None on the others.

    Raises:
        PredictionError: if a task is impossible, or as in `prediction.predict`.
    """
    if protocol not in PROTOCOLS:
        raise PredictionError(f"The protocol is one of {', '.join(PROTOCOLS)}, not {protocol!r}.")
    tasks, run = _feasible(model, data, tasks), run or Run()
    shards = predict(
        model,
        processor,
        data.records,
        folder,
        accelerator=accelerator,
        settings={"dataset": data.fingerprint, "split": split},
        run=run,
        scoring=Scoring(protocol, tasks),
    )
    if not accelerator.is_main_process:
        return None
    rows = _rows(shards, _SCORED_COLUMNS)
    answered = [row for row in rows if row["problem"] is None]
    left_out = {"unreadable": len(rows) - len(answered), "malformed": len(data.problems_within(run.limit))}
    write_malformed(data, folder, run.limit)
    worst = _worst_cases(answered, tasks[-1], split, shards, data.records, run.shard_rows)
    sources = sorted({row["source"] for row in answered})
    return SplitEvaluation({**left_out, **_all_scores(answered, tasks)}, sources, worst)


def _feasible(model, data: ReferringData, wanted: Iterable[str] | None) -> tuple[str, ...]:
    annotated = _annotated(data)
    possible = {"rec": "rec" in annotated, "res": segments(model) and "res" in annotated}
    for task in wanted or ():
        if not possible[task]:
            reason = (
                "the data have no boxes"
                if task == "rec"
                else "the data have no segmentations"
                if segments(model)
                else "the model does not segment"
            )
            raise PredictionError(f"The task {task} cannot be scored on {data.name}: {reason}.")
    tasks = tuple(task for task in TASKS if (possible[task] if wanted is None else task in wanted))
    if not tasks:
        raise PredictionError(f"{data.name} has nothing to score against: neither boxes nor, for this model, masks.")
    return tasks


def _annotated(data: ReferringData) -> set[str]:
    """The tasks that some record has a target for; of a stream the first records tell.

    Raises:
        PredictionError: if there are no records.
    """
    columns = {"rec": ["box"], "res": list(SEGMENTATIONS)}
    records = undecoded(data.records)
    if not hasattr(records, "__len__"):
        first = list(itertools.islice(records, _LOOKED_AT))
        if not first:
            raise PredictionError(f"{data.name} gives no usable row.")
        given = {name for record in first for name, value in record.items() if value is not None}
    else:
        parts = records.select_columns(["box", *SEGMENTATIONS]).with_format("arrow").iter(_LOOKED_AT)
        given = {name for part in parts for name in part.column_names if part[name].null_count < len(part)}
    return {task for task, names in columns.items() if given & {*names}}


# Scores -----------------------------------------------------------------------------------------------------------
def _rows(shards: list[Path], columns: list[str] | None = None) -> list[dict]:
    import pyarrow.parquet as pq

    return [row for path in shards for row in pq.read_table(path, columns=columns).to_pylist()]


def _all_scores(rows: list[dict], tasks: Iterable[str]) -> dict:
    by_length = _grouped(rows, tasks, lambda row: length_group(row["phrase"]))
    result = _scores(rows, tasks)
    result["by_phrase_length"] = {name: by_length[name] for name in _LENGTH_GROUPS if name in by_length}
    by_type = _grouped(rows, tasks, lambda row: row["expression_type"])
    if by_type:
        result["by_expression_type"] = dict(sorted(by_type.items()))
    return result


def length_group(phrase: str) -> str:
    """The group of a phrase by its number of words: `1-5`, `6-7`, `8-10` or `11+`."""
    words = len(phrase.split())
    return next(name for name, last in _LENGTH_GROUPS.items() if words <= last)


def _scores(rows: list[dict], tasks: Iterable[str]) -> dict:
    result: dict = {"samples": len(rows)}
    if "rec" in tasks:
        metric = RecMetric()
        boxed = [row for row in rows if row["box_iou"] is not None]
        overlaps = torch.tensor([row["box_iou"] for row in boxed])
        metric.update_iou(overlaps)
        result["rec"] = metric.compute()
        correct = overlaps >= metric.thresholds[0]
        if correct.any() and not correct.all():
            result["rec"]["score_auroc"] = score_auroc([row["score"] for row in boxed], correct)
    if "res" in tasks:
        metric = ResMetric()
        overlaps = [(row["mask_intersection"], row["mask_union"]) for row in rows if row["mask_union"] is not None]
        metric.update_overlap(*torch.tensor(overlaps, dtype=torch.int64).reshape(-1, 2).T)
        result["res"] = metric.compute()
    return result


def _grouped(rows: list[dict], tasks: Iterable[str], group_of: Callable[[dict], str | None]) -> dict[str, dict]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        if (group := group_of(row)) is not None:
            groups.setdefault(group, []).append(row)
    return {group: _scores(members, tasks) for group, members in groups.items()}


def _iou(row: dict, task: str) -> float | None:
    if task == "rec":
        return row["box_iou"]
    return None if row["mask_union"] is None else row["mask_intersection"] / max(row["mask_union"], 1)


def _worst_cases(
    rows: list[dict], task: str, split: str, shards: list[Path], records, shard_rows: int
) -> list[WorstCase]:
    ranked = sorted((iou, row["index"]) for row in rows if (iou := _iou(row, task)) is not None)[:_WORST]
    wanted = _picked(undecoded(records), {index for _, index in ranked})
    cases = []
    for iou, index in ranked:
        row = _rows([shards[index // shard_rows]])[index % shard_rows]
        cases.append(WorstCase(split, task, iou, wanted[index], row))
    return cases


def _picked(records, indices: set[int]) -> dict[int, dict]:
    if hasattr(records, "__len__"):
        return {index: records[index] for index in indices}
    stream = itertools.islice(records, max(indices, default=-1) + 1)
    return {index: record for index, record in enumerate(stream) if index in indices}
