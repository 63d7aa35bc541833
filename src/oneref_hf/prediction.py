# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Predictions over a whole data set, by any number of processes, as Parquet shards that a later run continues.

Every `shard_rows` neighbouring records make a shard, the unit of work: one process answers them and writes
`predictions-NUMBER.parquet`, under a temporary name first. Finished shards are never computed again, whoever made
them, so a run may be stopped at any moment and continued by another number of processes, and every record is answered
exactly once. `run.json` says what the shards belong to; with another model, data set or setting, or other records in
the data set (pictures may have come or gone), the run is refused.

Columns of a shard: `index` (place among the records), `id`, `image` (path or address), `phrase`, `source`,
`expression_type`, `score`, `box` (x0, y0, x1, y1 in pixels of the picture), `mask` (COCO run lengths of the picture,
compressed; where the model segments), and `problem`, which says why a record has no answer. An evaluation adds
`box_iou`, `mask_intersection` and `mask_union`. Rows that did not even become records are listed in `malformed.txt`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .complete_output import write_text
from .data.loading import ReferringData
from .data.records import has_segmentation, open_image, target_mask, undecoded
from .data.sources import DatasetError
from .letterbox_oneref import Letterbox, read_picture
from .metrics import box_iou, mask_overlap


SHARD_ROWS = 256
PROTOCOLS = ("canvas", "picture")
MALFORMED_FILE = "malformed.txt"
_RUN_FILE = "run.json"
_FORMAT = 1
# Where batch sizes start that are found by trying. Without memory a CPU kills the process instead of raising.
_FIRST_BATCH_SIZE = {"cpu": 8}
_FIRST_BATCH_SIZE_ELSEWHERE = 128


class PredictionError(ValueError):
    """The run cannot go on; the message is one sentence for a person. All processes raise it alike."""


class ProcessError(PredictionError):
    """What one of several processes met alone, so that it has to say it itself."""


@dataclass(frozen=True)
class Scoring:
    """What an evaluation adds to predictions.

    protocol: `"canvas"` is the paper's: the clamped box against the truncated annotation, the mask by the original's
        rule against the nearest-neighbour target, both on the padded canvas. `"picture"` compares with the annotation
        as it is, at the resolution of the picture.
    tasks: `"rec"` (boxes), `"res"` (masks) or both.
    """

    protocol: str = "canvas"
    tasks: tuple[str, ...] = ("rec",)


@dataclass(frozen=True)
class Run:
    """How to predict; see the functions that take it.

    batch_size: None finds the largest that fits by trying.
    limit: use the first records only.
    num_threads: for reading pictures and encoding masks; None takes this process's share of the cores, at most 8.
    overwrite: begin anew, whatever the folder holds, of this run or another.
    strict: stop at the first record whose picture or annotation cannot be used.
    """

    batch_size: int | None = None
    shard_rows: int = SHARD_ROWS
    limit: int | None = None
    num_threads: int | None = None
    overwrite: bool = False
    strict: bool = False

    def __post_init__(self):
        for name in ("batch_size", "shard_rows", "limit", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PredictionError(f"{name} is at least 1, not {value}.")


def load_model(name: str, dtype: str = "auto", trust_remote_code: bool = False):
    """Model and processor of a directory or Hub id.

    Args:
        trust_remote_code: needed for an exported program whose reading runs code, see
            [`~export.loading.OneRefExportedModel.from_pretrained`].

    Raises:
        PredictionError: if there is no model that answers phrases, or no processor.
    """
    from .pipeline_oneref import AutoModelForReferringExpression
    from .processing_oneref import OneRefProcessor

    if (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise PredictionError(f"There is no model directory '{name}'.")
    try:
        model = AutoModelForReferringExpression.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
        return model, OneRefProcessor.from_pretrained(name)
    except Exception as error:  # missing files, another architecture, network, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PredictionError(f"The model '{name}' cannot be loaded: {lines[0]}") from error


def make_accelerator():
    """The `Accelerator` of this process, patient enough for processes that finish hours apart.

    Without an accelerator it says `cpu=True`: left to itself it would take each of several launched processes for the
    only one.
    """
    from datetime import timedelta

    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=timedelta(days=2))
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])


def main_first(accelerator, action: Callable):
    """What `action` returns, done by the main process first, which fills caches; all raise its complaint, if any.

    Raises:
        ProcessError: if it succeeds in the main process and fails in this one.
    """
    done = []
    _agreed(accelerator, lambda: done.append(action()))
    try:
        return done[0] if done else action()
    except (PredictionError, DatasetError, OSError) as error:
        raise ProcessError(str(error)) from error


def segments(model) -> bool:
    """Whether a model has a mask head."""
    return hasattr(model, "mask_head")


def predict(
    model,
    processor,
    records,
    folder: str | os.PathLike,
    *,
    accelerator,
    settings: Mapping[str, object],
    run: Run | None = None,
    scoring: Scoring | None = None,
) -> list[Path]:
    """Answers every record and returns the shards in order. All processes call it with the same arguments.

    Of an `IterableDataset` every process reads all rows, but opens the pictures of its own shards only.

    Args:
        model, processor: as `load_model` gives them.
        records: `datasets.Dataset` or `IterableDataset` with the columns of `record_features`.
        folder: for the shards; on a disk that all processes see.
        accelerator: of this process.
        settings: what else the predictions depend on, such as the fingerprint of the data set and the name of the
            split; plain values. The model, its dtype, the scoring and the shard size are added.

    Raises:
        PredictionError: if the folder holds another run or shards of other records, a shard is missing in the end, or
            there are no records.
        ProcessError: if this process cannot write.
    """
    folder, run = Path(folder), run or Run()
    settings = {
        "format": _FORMAT,
        **settings,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": model_fingerprint(model, processor) if accelerator.is_main_process else None,
        "protocol": scoring and scoring.protocol,
        "tasks": scoring and list(scoring.tasks),
        "shard_rows": run.shard_rows,
        "limit": run.limit,
    }
    finished = _agreed(accelerator, lambda: _claim(folder, settings, run.overwrite))
    with _memory_lasts(f"for the model on {accelerator.device}; try --dtype bfloat16 or a smaller model."):
        if not hasattr(model.config, "export"):  # an exported model stays where it is
            model = model.to(accelerator.device)
        model = model.eval()
    work = _Work(model, processor, records, folder, accelerator, run, scoring, finished)
    try:
        num_rows = _answered(work, run)
    except OSError as error:  # a full disk, say
        raise ProcessError(str(error)) from error
    accelerator.wait_for_everyone()
    return _agreed(accelerator, lambda: _complete(folder, num_rows, run.shard_rows))


def write_malformed(data: ReferringData, folder: str | os.PathLike, limit: int | None) -> Path | None:
    """Lists all rows left out among the first `limit` records, with their reasons; None and no file if there are none.

    To be called after `predict`, since a stream has been read only then.
    """
    path, problems = Path(folder, MALFORMED_FILE), data.problems_within(limit)
    if not problems:
        path.unlink(missing_ok=True)
        return None
    write_text(path, "".join(f"{problem}\n" for problem in problems))
    return path


def _answered(work: _Work, run: Run) -> int:
    """`_Work.answer` with the largest batch size that fits, unless one is given."""
    if run.batch_size is not None:
        with _memory_lasts(f"for batches of {run.batch_size}; give a smaller --batch-size, or none."):
            return work.answer(run.batch_size)
    from accelerate.utils import find_executable_batch_size

    def answer(batch_size: int) -> int:
        if batch_size > 1:
            return work.answer(batch_size)
        with _memory_lasts("for a single phrase; try --dtype bfloat16 or a smaller model."):
            return work.answer(1)

    first = _FIRST_BATCH_SIZE.get(work.model.device.type, _FIRST_BATCH_SIZE_ELSEWHERE)
    return find_executable_batch_size(answer, min(first, run.shard_rows))()


@contextmanager
def _memory_lasts(purpose: str) -> Iterator[None]:
    """Turns what libraries raise when it does not into one sentence of this process."""
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise ProcessError(f"There is not enough memory {purpose}") from error


def model_fingerprint(model, processor) -> str:
    """Hash of everything in the model and its processor that predictions depend on."""
    digest = hashlib.sha256()
    configuration = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "auto_map", "dtype"):
        configuration.pop(name, None)
    digest.update(json.dumps([type(model).__name__, configuration], sort_keys=True, default=str).encode())
    digest.update(processor.image_processor.to_json_string().encode())
    digest.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        for part in _plain_tensors(tensor):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """What a quantised tensor consists of, such as values and scales; any other is itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


# The folder -------------------------------------------------------------------------------------------------------
def _agreed(accelerator, action: Callable):
    """What the main process finds; its complaint, too, is raised on all."""
    from accelerate.utils import broadcast_object_list

    found = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = action()
        except (PredictionError, DatasetError, OSError) as error:
            found[1] = str(error)
    result, complaint = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    if complaint is not None:
        raise PredictionError(complaint)
    return result


def _claim(folder: Path, settings: dict, overwrite: bool) -> set[int]:
    """Makes the folder this run's and returns the numbers of the shards that are there already."""
    settings = json.loads(json.dumps(settings))
    note = folder / _RUN_FILE
    if overwrite:
        for path in [*_shards_in(folder).values(), note]:
            path.unlink(missing_ok=True)
    if not note.exists():
        if _shards_in(folder):
            raise PredictionError(f"'{folder}' holds predictions without {_RUN_FILE}; choose another --output.")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(settings, indent=2) + "\n")
    try:
        held = dict(json.loads(note.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise PredictionError(f"'{note}' is damaged; replace the predictions with --overwrite.") from error
    differing = [name for name in {**held, **settings} if held.get(name) != settings.get(name)]
    if differing:
        raise PredictionError(
            f"'{folder}' holds predictions of another run ({', '.join(differing)} differ); choose another --output, "
            "or replace them with --overwrite."
        )
    for leftover in folder.glob(".predictions-*.partial"):
        with suppress(OSError):
            leftover.unlink()
    return set(_shards_in(folder))


def _shards_in(folder: Path) -> dict[int, Path]:
    """By number; what else may lie there, such as a copy with ` (1)` in its name, is no shard."""
    found = {path: re.fullmatch(r"predictions-([0-9]+)\.parquet", path.name) for path in folder.glob("*.parquet")}
    return {int(match[1]): path for path, match in found.items() if match}


def _complete(folder: Path, num_rows: int, shard_rows: int) -> list[Path]:
    if num_rows == 0:
        raise PredictionError("The data set has no records.")
    shards = _shards_in(folder)
    expected = range(-(-num_rows // shard_rows))
    if any(number not in expected for number in shards):
        raise PredictionError(
            f"'{folder}' holds answers for more records than the data set has now; choose another --output, or begin "
            "anew with --overwrite."
        )
    missing = [number for number in expected if number not in shards]
    if missing:
        raise PredictionError(
            f"'{folder}' lacks {len(missing)} of {len(expected)} shards; it must lie on a disk that all processes "
            "share."
        )
    return [shards[number] for number in expected]


# The work of one process ------------------------------------------------------------------------------------------
@dataclass
class _Batch:
    """Neighbouring records of one shard; `last` closes the shard."""

    shard: int
    first: int
    records: list[dict]
    last: bool


@dataclass
class _Prepared:
    """A batch with its pictures on the canvas; all lists have one entry per record in `kept`."""

    batch: _Batch
    kept: list[int] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    pixels: list[Mapping[str, torch.Tensor]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[torch.Tensor | None] = field(default_factory=list)
    masks: list[torch.Tensor | None] = field(default_factory=list)


class _Work:
    def __init__(self, model, processor, records, folder, accelerator, run: Run, scoring, finished: set[int]):
        self.model, self.processor, self.folder = model, processor, folder
        self.records = undecoded(records)
        self.accelerator, self.run, self.scoring = accelerator, run, scoring
        self.finished = finished
        # A model that learnt from masks alone has no other way to a box.
        wanted = scoring is None or "res" in scoring.tasks or model.config.trained_on_masks_only
        self.segments = segments(model) and wanted
        share = (os.cpu_count() or 1) // accelerator.num_processes
        self.num_threads = run.num_threads or max(1, min(8, share))

    def answer(self, batch_size: int) -> int:
        """Answers the shards that fall to this process and returns how many records there are in all."""
        from tqdm.auto import tqdm

        shards, main = _Shards(self.records, self.run.shard_rows, self.run.limit), self.accelerator.is_main_process
        pending: list[Future] = []
        with (
            ThreadPoolExecutor(self.num_threads) as pool,
            tqdm(total=shards.num_rows, unit=" phrases", disable=None if main else True) as bar,
        ):
            try:
                batches = self._batches(shards, batch_size, bar)
                for prepared in _ahead(pool, self._prepared, batches, self.num_threads):
                    pending.append(pool.submit(self._rows, prepared, self._answers(prepared)))
                    _advance(bar, len(prepared.batch.records) * self.accelerator.num_processes)
                    if prepared.batch.last:
                        self._write(prepared.batch.shard, [row for future in pending for row in future.result()])
                        pending = []
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return shards.num_rows

    def _batches(self, shards: _Shards, batch_size: int, bar) -> Iterator[_Batch]:
        """The unfinished shards go round the processes in turn."""
        turn = 0
        for number, read in shards:
            if number in self.finished:
                self._require_same(number, read)
                _advance(bar, self.run.shard_rows)
                continue
            turn += 1
            mine = (turn - 1) % self.accelerator.num_processes == self.accelerator.process_index
            # It is there, although it was not at the start, if memory ran out later and this is a new try.
            if not mine or self._path(number).exists():
                continue
            records = read()
            for start in range(0, len(records), batch_size):
                part = records[start : start + batch_size]
                first = number * self.run.shard_rows + start
                yield _Batch(number, first, part, last=start + batch_size >= len(records))

    def _require_same(self, number: int, read: Callable) -> None:
        """A shard that is there must hold the records of now: pictures may have been added or lost since."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": "id", "image": "image_file", "phrase": "phrase"}
        try:
            held = pq.read_table(self._path(number), columns=list(columns)).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise PredictionError(f"'{self._path(number)}' is damaged; delete it and repeat the command.") from error
        if held != [{name: record[column] for name, column in columns.items()} for record in read(columns.values())]:
            raise PredictionError(
                f"'{self._path(number)}' holds answers for other records than the data set has now, perhaps because "
                "pictures were added or removed; choose another --output, or begin anew with --overwrite."
            )

    def _prepared(self, batch: _Batch) -> _Prepared:
        """Opens the pictures and lays them out; neighbours on one picture share it."""
        prepared = _Prepared(batch)
        source = size = pixels = None
        for position, record in enumerate(batch.records):
            try:
                if pixels is None or record["image"] != source:
                    source, pixels = record["image"], None
                    picture = read_picture(open_image(source), convert_rgb=True, to_8_bit_range=False)
                    size = tuple(picture.shape[-2:])
                    pixels = self.processor.image_processor(
                        picture, input_data_format="channels_first", return_tensors="pt"
                    )
                box, mask = self._targets(record, size)
            except ValueError as error:
                if self.run.strict:
                    raise ProcessError(f"The record '{record['id']}' cannot be used: {error}") from error
                prepared.problems[position] = str(error)
                continue
            prepared.kept.append(position)
            prepared.pixels.append(pixels)
            prepared.sizes.append(size)
            prepared.boxes.append(box)
            prepared.masks.append(mask)
        return prepared

    def _targets(self, record: dict, size: tuple[int, int]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The annotated box and mask in the frame of the protocol, where they are scored."""
        if self.scoring is None:
            return None, None
        canvas = self._canvas(size)
        on_canvas = self.scoring.protocol == "canvas"
        box = mask = None
        if "rec" in self.scoring.tasks and record["box"] is not None:
            box = torch.tensor([record["box_truncated" if on_canvas else "box"]], dtype=torch.float32)
            box = canvas.boxes_to_canvas(box) if on_canvas else box
        if "res" in self.scoring.tasks and has_segmentation(record):
            mask = torch.from_numpy(target_mask(record, size)).bool()
            mask = canvas.mask_to_canvas(mask) if on_canvas else mask
        return box, mask

    def _canvas(self, size: tuple[int, int]) -> Letterbox:
        return Letterbox.centred(*size, self.processor.image_processor.size.height)

    @torch.inference_mode()
    def _answers(self, prepared: _Prepared) -> list[dict]:
        """Score, box, mask and what the scoring asks for, per kept record."""
        if not prepared.kept:
            return []
        device = self.model.device
        phrases = [prepared.batch.records[position]["phrase"] for position in prepared.kept]
        pixels = {name: torch.cat([canvas[name] for canvas in prepared.pixels]) for name in prepared.pixels[0]}
        inputs = {**pixels, **self.processor(text=phrases, return_tensors="pt")}
        inputs = {name: value.to(device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        options = {"predict_masks": self.segments} if segments(self.model) else {}
        outputs = self.model(**inputs, **options)
        boxes = outputs.pred_boxes.float().cpu()
        scores = outputs.scores.float().cpu()
        layouts = [self._canvas(size) for size in prepared.sizes]
        in_picture = torch.cat([canvas.boxes_to_picture(box[None]) for canvas, box in zip(layouts, boxes)])
        answers = [{"score": score, "box": box} for score, box in zip(scores.tolist(), in_picture.tolist())]
        if self.segments:
            masks = self.processor.post_process_masks(outputs, prepared.sizes, protocol="picture")
            for answer, mask in zip(answers, masks):
                answer["mask"] = mask.cpu().numpy()
        if self.scoring is not None:
            self._score_boxes(answers, prepared.boxes, boxes, in_picture)
            if self.segments:
                self._score_masks(answers, prepared.masks, outputs.pred_masks)
        return answers

    def _score_boxes(self, answers: list[dict], targets: list, on_canvas: torch.Tensor, in_picture: torch.Tensor):
        rows = [row for row, target in enumerate(targets) if target is not None]
        if not rows:
            return
        boxes, form = (on_canvas, "cxcywh") if self.scoring.protocol == "canvas" else (in_picture, "xyxy")
        overlaps = box_iou(boxes[rows], torch.cat([targets[row] for row in rows]), form)
        for row, overlap in zip(rows, overlaps.tolist()):
            answers[row]["box_iou"] = overlap

    def _score_masks(self, answers: list[dict], targets: list, logits: torch.Tensor):
        for row, target in enumerate(targets):
            if target is None:
                continue
            mask = logits[row] if self.scoring.protocol == "canvas" else torch.from_numpy(answers[row]["mask"])
            intersection, union = mask_overlap(mask[None], target[None].to(mask.device))
            answers[row]["mask_intersection"], answers[row]["mask_union"] = intersection.item(), union.item()

    def _rows(self, prepared: _Prepared, answers: list[dict]) -> list[dict]:
        """The rows of the shard, in order."""
        by_position = dict(zip(prepared.kept, answers))
        rows = []
        for position, record in enumerate(prepared.batch.records):
            answer = by_position.get(position, {"problem": prepared.problems.get(position)})
            if "mask" in answer:
                answer["mask"] = encoded_mask(answer["mask"])
            rows.append(
                {
                    "index": prepared.batch.first + position,
                    "image": record["image_file"],
                    **{name: record[name] for name in ("id", "phrase", "source", "expression_type")},
                    **answer,
                }
            )
        return rows

    def _write(self, number: int, rows: list[dict]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(number)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        pq.write_table(pa.Table.from_pylist(rows, shard_schema(self.scoring is not None)), partial)
        partial.replace(path)

    def _path(self, number: int) -> Path:
        return self.folder / f"predictions-{number:05d}.parquet"


class _Shards:
    """Numbered runs of records, each with a function that reads it, or at least some of its columns.

    `num_rows` is known at once or after the last.
    """

    def __init__(self, records, shard_rows: int, limit: int | None):
        self.records, self.shard_rows, self.limit = records, shard_rows, limit
        self.num_rows = None
        if hasattr(records, "__len__"):
            self.num_rows = len(records) if limit is None else min(limit, len(records))

    def __iter__(self) -> Iterator[tuple[int, Callable[..., list[dict]]]]:
        if self.num_rows is not None:
            for number, start in enumerate(range(0, self.num_rows, self.shard_rows)):
                yield number, functools.partial(self._slice, start, min(start + self.shard_rows, self.num_rows))
            return
        stream, num_rows = iter(itertools.islice(self.records, self.limit)), 0
        for number in itertools.count():
            part = list(itertools.islice(stream, self.shard_rows))
            num_rows += len(part)
            if not part:
                break
            yield number, lambda columns=None, part=part: part
        self.num_rows = num_rows

    def _slice(self, start: int, stop: int, columns: Iterable[str] | None = None) -> list[dict]:
        records = self.records if columns is None else self.records.select_columns(list(columns))
        columns = records[start:stop]
        return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _advance(bar, rows: int) -> None:
    """By an estimate, as only this process's own rows are counted: the last shard is smaller, for example."""
    bar.update(rows if bar.total is None else min(rows, bar.total - bar.n))


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, depth: int) -> Iterator:
    """`map` by threads, in order, never more than `depth` items ahead."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def encoded_mask(mask: np.ndarray) -> dict:
    """A bool mask `(height, width)` as COCO run lengths, `counts` compressed to text."""
    from pycocotools import mask as coco

    lengths = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(lengths["size"]), "counts": lengths["counts"].decode("ascii")}


def shard_schema(scored: bool):
    """The typed columns of a shard, `pyarrow.Schema`; those of an evaluation if `scored`."""
    import pyarrow as pa

    columns = {
        "index": pa.int64(),
        "id": pa.string(),
        "image": pa.string(),
        "phrase": pa.string(),
        "source": pa.string(),
        "expression_type": pa.string(),
        "score": pa.float32(),
        "box": pa.list_(pa.float32(), 4),
        "mask": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}),
        "problem": pa.string(),
    }
    if scored:
        columns.update(box_iou=pa.float32(), mask_intersection=pa.int64(), mask_union=pa.int64())
    return pa.schema(columns)
