# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What a person sees of an evaluation: tables, JSON, a picture of the worst cases, metadata of a model card.

`results` has this form everywhere:

    {"model": ..., "dataset": ..., "protocol": ..., "dtype": ..., "splits": {SPLIT: scores}}

with the scores of `evaluation.SplitEvaluation`, and beside them `paper`, the published figures in percent by metric,
where there are any.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .complete_output import write_text
from .data.records import open_image, target_mask
from .evaluation import PRIMARY_METRICS, TASKS, WorstCase
from .prediction import MALFORMED_FILE, PredictionError
from .visualization import ANSWER_COLOURS, draw_answers, rgb_picture


# metric: (type on the Hub, name there)
CARD_METRICS = {
    "accuracy@0.5": ("accuracy", "accuracy at IoU 0.5"),
    "miou": ("mean_iou", "mean IoU"),
    "oiou": ("overall_iou", "overall IoU"),
}
_CARD_TASKS = {
    "rec": {"type": "zero-shot-object-detection", "name": "referring expression comprehension"},
    "res": {"type": "image-segmentation", "name": "referring expression segmentation"},
}
_SHOWN_NAMES = {
    "accuracy@0.5": "accuracy at IoU 0.5",
    "mean_iou": "mean IoU of boxes",
    "score_auroc": "right from wrong by score (AUROC)",
    "miou": "mean IoU of masks (mIoU)",
    "oiou": "overall IoU of masks (oIoU)",
}
_CELL, _COLUMNS, _GAP = 400, 4, 12
_WORST_SHOWN = 12


def results_table(results: dict) -> str:
    """The scores in percent, one line per split and metric, beside the paper's where there are any."""
    lines = [("split", "metric", "samples", "score", "paper (canvas)")]
    for split, scores in results["splits"].items():
        for task in TASKS:
            for metric, value in scores.get(task, {}).items():
                if metric != "samples":
                    paper = scores.get("paper", {}).get(metric)
                    name = _SHOWN_NAMES.get(
                        metric, metric.replace("precision@", "share of masks with IoU of at least ")
                    )
                    count = str(scores[task]["samples"])
                    lines.append((split, name, count, _percent(value), "-" if paper is None else f"{paper:.2f}"))
    title = f"{results['model']} on {results['dataset']}, {results['protocol']} protocol, {results['dtype']}"
    return f"{title}\n\n{_table(lines)}"


def breakdown_table(results: dict) -> str:
    """The primary metric of each task by length of the phrase and, where given, by expression type."""
    tasks = [task for task in TASKS if any(task in scores for scores in results["splits"].values())]
    lines = [("split", "phrases", "samples", *(_SHOWN_NAMES[PRIMARY_METRICS[task]] for task in tasks))]
    for split, scores in results["splits"].items():
        groups = {f"{name} words": group for name, group in scores["by_phrase_length"].items()}
        for name, group in {**groups, **scores.get("by_expression_type", {})}.items():
            values = (_percent(group.get(task, {}).get(PRIMARY_METRICS[task], math.nan)) for task in tasks)
            lines.append((split, name, str(group["samples"]), *values))
    return _table(lines)


def left_out(results: dict, output: Path) -> Iterator[str]:
    """A sentence for every split that some rows are missing from; `output` has a folder for each split."""
    for split, scores in results["splits"].items():
        listed = {"malformed": f" (listed in {output / split / MALFORMED_FILE})", "unreadable": ""}
        parts = [f"{scores[kind]} {kind}{where}" for kind, where in listed.items() if scores[kind]]
        if parts:
            yield f"{split}: rows that do not count: {', '.join(parts)}."


def write_results(results: dict, path: Path) -> None:
    """As JSON; a score over no samples is null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    write_text(path, json.dumps(plain(results), indent=2, allow_nan=False) + "\n")


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _table(lines: list[tuple[str, ...]]) -> str:
    """Columns of text to the left, of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = [
        "  ".join(
            cell.ljust(width) if position < 2 else cell.rjust(width) for position, (cell, width) in enumerate(cells)
        )
        for cells in ([*zip(line, widths)] for line in lines)
    ]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])


# The worst cases --------------------------------------------------------------------------------------------------
def draw_worst_cases(cases: Iterable[WorstCase]) -> Image.Image:
    """The cases with the lowest IoU: prediction and annotation on the picture, the phrase and the IoU below."""
    cases = sorted(cases, key=lambda case: case.iou)[:_WORST_SHOWN]
    font = ImageFont.load_default(19)
    line = sum(font.getmetrics())
    rows = max(-(-len(cases) // _COLUMNS), 1)
    height = _CELL + 2 * line + _GAP
    sheet = Image.new("RGB", (_GAP + _COLUMNS * (_CELL + _GAP), 2 * _GAP + line + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for text, colour in zip(("predicted", "annotated"), ANSWER_COLOURS):
        draw.rectangle((left, _GAP, left + line, _GAP + line - 4), fill=colour, outline="black")
        draw.text((left + line + 6, _GAP), text, fill="black", font=font)
        left += line + 6 + round(font.getlength(text)) + 2 * _GAP
    for number, case in enumerate(cases):
        row, column = divmod(number, _COLUMNS)
        left, top = _GAP + column * (_CELL + _GAP), 2 * _GAP + line + row * height
        panel = _panel(case)
        sheet.paste(panel, (left + (_CELL - panel.width) // 2, top + (_CELL - panel.height) // 2))
        for text, offset in ((case.record["phrase"], 0), (f"{case.split}, IoU {case.iou:.2f}", line)):
            draw.text((left, top + _CELL + offset), _shortened(text, font), fill="black", font=font)
    return sheet


def _panel(case: WorstCase) -> Image.Image:
    """The picture, scaled to a cell before anything is drawn, so that lines stay sharp."""
    picture = rgb_picture(open_image(case.record["image"]))
    scale = _CELL / max(picture.size)
    size = tuple(max(round(side * scale), 1) for side in picture.size)
    masks = case.task == "res"
    answers = [_scaled(case.row["box"], scale), _scaled(case.record["box"] or case.row["box"], scale)]
    if masks:
        from pycocotools import mask as coco

        predicted = coco.decode(case.row["mask"])
        for answer, mask in zip(answers, (predicted, target_mask(case.record, predicted.shape))):
            answer["mask"] = Image.fromarray(255 * mask).resize(size)
    panel = picture.resize(size, Image.Resampling.LANCZOS)
    return draw_answers(panel, answers, boxes=not masks, masks=masks, labels=False)


def _scaled(box, scale: float) -> dict:
    return {"box": {name: value * scale for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box)}}


def _shortened(text: str, font) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= _CELL:
        return text
    while text and font.getlength(text + "…") > _CELL:
        text = text[:-1]
    return text + "…"


# The model card ---------------------------------------------------------------------------------------------------
def update_card(path: Path, results: dict) -> None:
    """Merges the results into the `model-index` metadata of a model card.

    Entries with a source, such as the paper's figures, stay as they are. An entry without a source of the same task,
    data set, split and protocol is replaced, so that doing it twice changes nothing.

    Raises:
        PredictionError: if there is no such card, or its metadata are damaged.
    """
    from huggingface_hub import metadata_load
    from huggingface_hub.repocard import metadata_save

    if not path.is_file():
        raise PredictionError(f"There is no model card '{path}'.")
    try:
        metadata = metadata_load(path) or {}
        models = metadata.setdefault("model-index", [{"name": results["model"], "results": []}])
        entries = models[0].setdefault("results", [])
        for entry in _card_entries(results):
            entries[:] = [held for held in entries if not _replaced(held, entry)] + [entry]
    except Exception as error:  # YAML, or anything but the expected nesting
        raise PredictionError(f"The metadata of the model card '{path}' cannot be read: {error!r:.200}") from error
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(path.read_bytes())
    metadata_save(partial, metadata)
    partial.replace(path)


def _card_entries(results: dict) -> Iterator[dict]:
    for split, scores in results["splits"].items():
        for task in TASKS:
            if task in scores:
                metrics = [
                    {
                        "type": kind,
                        "value": round(100 * scores[task][metric], 2),
                        "name": name,
                        "args": {"protocol": results["protocol"], "samples": scores[task]["samples"]},
                    }
                    for metric, (kind, name) in CARD_METRICS.items()
                    if metric in scores[task]
                ]
                dataset = {"name": results["dataset"], "type": results["dataset"], "split": split}
                yield {"task": _CARD_TASKS[task], "dataset": dataset, "metrics": metrics}


def _replaced(held: dict, entry: dict) -> bool:
    def protocol(result: dict):
        return result["metrics"][0].get("args", {}).get("protocol")

    same = all(
        held["task"]["type"] == entry["task"]["type"] and held["dataset"].get(k) == v
        for k, v in entry["dataset"].items()
    )
    return same and "source" not in held and protocol(held) == protocol(entry)


__all__ = ["breakdown_table", "draw_worst_cases", "left_out", "results_table", "update_card", "write_results"]
