# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From a model to a directory with its program, its configuration and its processor, compared with the model."""

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..complete_output import complete_directory, what_is_there
from ..pipeline_oneref import AutoModelForReferringExpression
from ..processing_oneref import OneRefProcessor
from . import onnx
from .loading import FORMATS, OneRefExportedModel
from .program import OUTPUTS, ExportError, OneRefProgram
from .verification import TOLERANCES, Difference, box_agreement, largest_difference


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        folder: the directory.
        outputs: what the program answers.
        num_bytes: size of the program.
        difference: the largest one from the model, before weights were quantised.
        tolerance: how large it might have been.
        box_iou: mean IoU of the boxes with those of the float model on drawn scenes, if weights were quantised.
    """

    folder: Path
    outputs: tuple[str, ...]
    num_bytes: int
    difference: Difference
    tolerance: float
    box_iou: float | None


def export_model(
    model: str | os.PathLike,
    output: str | os.PathLike,
    format: str,
    *,
    task: str | None = None,
    dtype: str = "float32",
    opset: int | None = None,
    quantize: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """
    Exports a model with its processor, and compares the result with it for several batch sizes and text lengths. The
    directory appears only if the two agree.

    Args:
        model: directory or Hub id of a OneRef model with a box head.
        output: directory to write; absent, empty or, with `overwrite`, an earlier export.
        format: "onnx", "torch_export" or "aotinductor".
        task: "grounding" (boxes), "segmentation" (boxes and masks) or None for whatever the model can do.
        dtype: number format of the weights.
        opset: version of ONNX's operators; None is the one that is fastest.
        quantize: ONNX only, "int8" or "int4" for the weights of the encoder.
        overwrite: replaces an earlier export.

    Raises:
        ExportError: if the model cannot be exported so, or the exported one differs from it.
    """
    output = Path(output)
    _check_arguments(format, dtype, opset, quantize)
    _check_output(output, overwrite)
    loaded, processor = _load(model, dtype)
    program = OneRefProgram(loaded, task).eval()
    if quantize == "int4" and program.config.hidden_size % onnx.INT4_BLOCK:
        raise ExportError(f"int4 needs a hidden size that is a multiple of {onnx.INT4_BLOCK}.")

    with complete_directory(output) as folder:
        with _silence():
            if format == "onnx":
                onnx.write(program, folder, opset or onnx.OPSET)
            else:
                FORMATS[format].write(program, folder)
        record = {
            "format": format,
            "task": program.task,
            "outputs": list(OUTPUTS[program.task]),
            "dtype": dtype,
            "quantization": quantize,
            "torch": torch.__version__,
        }
        processor.save_pretrained(folder)
        _write_configuration(program, folder, record)
        exported = OneRefExportedModel.from_pretrained(folder, trust_remote_code=True)
        difference = largest_difference(exported, program)
        if difference.value > TOLERANCES[dtype]:
            raise ExportError(
                f"The exported model differs from '{model}' by {difference.value:.1e} in {difference.output}, more "
                f"than the {TOLERANCES[dtype]:.0e} that rounding explains; nothing was written."
            )
        overlap = None
        if quantize is not None:
            with _silence():
                onnx.quantize(folder, quantize)
            exported = OneRefExportedModel.from_pretrained(folder)
            overlap = box_agreement(exported, program, processor)
        files = [path for path in folder.iterdir() if path.name.startswith(FORMATS[format].FILE)]
        record["sha256"] = _checksum(files)
        record["largest_difference"] = difference.value
        record["box_iou"] = overlap
        _write_configuration(program, folder, record)
        num_bytes = sum(path.stat().st_size for path in files)
    return ExportReport(output, OUTPUTS[program.task], num_bytes, difference, TOLERANCES[dtype], overlap)


def _check_arguments(format: str, dtype: str, opset: int | None, quantize: str | None):
    if format not in FORMATS:
        raise ExportError(f"The format is one of {', '.join(FORMATS)}, not {format!r}.")
    if dtype not in TOLERANCES:
        raise ExportError(f"The dtype is one of {', '.join(TOLERANCES)}, not {dtype!r}.")
    if format != "onnx" and (opset is not None or quantize is not None):
        name = "opset" if opset is not None else "quantize"
        raise ExportError(f"{name} is for the format onnx, not for {format}.")
    if quantize not in (None, *onnx.QUANTIZATIONS):
        raise ExportError(f"Weights are quantised to {' or '.join(onnx.QUANTIZATIONS)}, not to {quantize!r}.")
    if quantize is not None and dtype != "float32":
        raise ExportError(f"Weights are quantised from float32, not from {dtype}.")
    if opset is not None and not onnx.OLDEST_OPSET <= opset <= onnx.OPSET:
        raise ExportError(f"The opset lies between {onnx.OLDEST_OPSET} and {onnx.OPSET}, so it cannot be {opset}.")
    if dtype == "bfloat16" and format == "onnx":
        raise ExportError("ONNX Runtime has no bfloat16 on the CPU; use float32 or float16.")


def _check_output(output: Path, overwrite: bool):
    there = what_is_there(output, lambda config: "export" in config)
    if there == "other":
        raise ExportError(f"'{output}' holds something else than an earlier export; choose another output.")
    if there == "ours" and not overwrite:
        raise ExportError(f"'{output}' exists already; choose another output or overwrite it.")


def _load(model: str | os.PathLike, dtype: str):
    loaded = AutoModelForReferringExpression.from_pretrained(model, dtype=dtype)
    if isinstance(loaded, OneRefExportedModel):
        raise ExportError(f"'{model}' is an exported model; export the one it was made of.")
    if getattr(loaded, "hf_quantizer", None) is not None:
        raise ExportError(f"'{model}' has quantised weights; export the float model, for ONNX with quantize.")
    return loaded.eval(), OneRefProcessor.from_pretrained(model)


def _write_configuration(program: OneRefProgram, folder: Path, record: dict):
    config = copy.deepcopy(program.config)
    config.architectures = [OneRefExportedModel.__name__]
    config.export = record
    config.auto_map = None  # the model's own names classes that cannot read a program
    config.save_pretrained(folder)


def _checksum(files: list[Path]) -> str:
    """SHA-256 of the program. Predictions ask by it whether they are of the same model."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps to themselves what the exporters say about packages that are not needed and about their own innards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
