# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts original OneRef and BEiT-3 checkpoints to directories that `from_pretrained` reads.

    python conversion/convert_oneref.py best_checkpoint.pth --tokenizer beit3.spm --output DIR
    python conversion/convert_oneref.py release.zip::unc/best_checkpoint.pth --tokenizer beit3.spm --output DIR
    python conversion/convert_oneref.py --name rec-base-refcoco
    python conversion/convert_oneref.py --all --only 'rec-base-*' --output converted

Sizes and the task are read off the weights. Weights keep the type they are stored in unless `--dtype` says otherwise.
Nothing in a checkpoint is executed, its optimizer state is not read, and the output appears only when complete.
"""

import argparse
import fnmatch
import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from checkpoint_reader import Checkpoint, open_checkpoint
from command_line import source_options, writing_options
from manifest import ModelRow, load_manifest
from oneref_keys import (
    TASKS,
    VISION_POSITIONS,
    Assignment,
    KeyMismatch,
    Plan,
    infer_config,
    infer_task,
    map_state_dict,
    resize_positions,
)
from output_directory import (
    DEFAULT_ROOT,
    REPORT_FILE,
    ConversionError,
    check_output,
    refuse_differences,
    released_card,
    safetensors_errors,
    sha256,
    source_facts,
    without_progress_bars,
    write_report,
)
from safetensors import safe_open
from safetensors_writer import (
    DTYPE_NAMES,
    DTYPES,
    TensorToWrite,
    cast,
    main_dtype,
    parse_size,
    tensor_offsets,
    write_model,
)
from sources import Source, released, released_row, released_tokenizer, resolve
from tqdm import tqdm

from oneref_hf.complete_output import complete_directory


CARD = """\
---
library_name: transformers
tags: [oneref, visual-grounding, referring-expression]
---

# {title}

`{model_class}` converted from `{origin}`, a checkpoint of [OneRef](https://github.com/linhuixiao/OneRef) or of its
backbone BEiT-3: {parameters:,} parameters, {dtype}, {image_size} x {image_size} pixels.

```python
from oneref_hf import {model_class}

model = {model_class}.from_pretrained("DIRECTORY").eval()
```

`conversion_report.json` says which original parameter became which of these.
"""


@dataclass(frozen=True)
class Options:
    """How to convert; see the command line's help."""

    task: str = "auto"
    dtype: torch.dtype | None = None
    image_size: int | None = None
    max_shard_size: int = 5 * 10**9
    allow_unused: bool = False
    verify: bool = True
    checksum: bool = False
    overwrite: bool = False


def convert(
    source: Source,
    output: Path,
    tokenizer: Path | None,
    options: Options = Options(),
    show_progress: bool = False,
) -> dict:
    """Converts one checkpoint and returns the report that is also written to `conversion_report.json`.

    Args:
        source: the checkpoint.
        output: directory to write; must not exist, be empty, or with `options.overwrite` be an earlier conversion.
        tokenizer: SentencePiece model (`beit3.spm`) for the processor; None writes the model alone.
        options: see `Options`.
        show_progress: whether to draw a progress bar on standard error.

    Raises:
        ValueError, OSError: the checkpoint, the output or the combination of options is not usable; one sentence.
            Nothing is left of the output then.
    """
    ours = ("oneref", "beit3")
    check_output(output, options.overwrite, lambda config: config.get("model_type") in ours, source.path)
    with (
        safetensors_errors(output),
        complete_directory(output) as folder,
        _checksum_meanwhile(source, options.checksum) as checksum,
        open_checkpoint(source.path, source.member, scratch=folder) as checkpoint,
    ):
        label = source.path.name if source.member is None else f"{source.path.name}::{source.member}"
        try:
            model, plan = _plan(checkpoint, options)
        except KeyMismatch as error:
            raise ConversionError(f"'{label}' does not convert: {error}.") from error
        if tokenizer is not None:
            _save_processor(folder, tokenizer, model.config)
        tensors = _tensors_to_write(checkpoint, model, plan, options.dtype)
        size = sum(tensor.nbytes for tensor in tensors)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ConversionError(
                f"The weights take {size:,} bytes, and '{folder.parent}' has room for {free:,} only."
            )
        dtype = main_dtype(tensors)
        _save_definition(folder, model, dtype)  # before the weights, as it would delete them
        with tqdm(total=size, unit="B", unit_scale=True, desc=output.name, disable=not show_progress) as bar:
            files = write_model(folder, tensors, options.max_shard_size, bar.update)
        if options.verify:
            verify(folder, files, checkpoint, plan, tensors)
            if tokenizer is not None:
                verify_processor(folder, tokenizer, model.config.image_size)
        stored = main_dtype(_tensors_to_write(checkpoint, model, plan, None))
        stored_size = infer_config(_shapes(checkpoint), plan.task)["image_size"]
        report = {
            "source": source_facts(source, checksum(), stored, stored_size),
            "model_class": type(model).__name__,
            "task": plan.task,
            "dtype": dtype,
            "image_size": model.config.image_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": size,
            "processor": tokenizer is not None,
            "verified": options.verify,
            "original_training": checkpoint.facts,
            "mapped": {assignment.target: list(assignment.sources) for assignment in plan.assignments},
            "dropped": plan.dropped,
            "fresh": plan.fresh,
        }
        write_card(folder, output.name, report, source.row)
        write_report(folder, report)
    return report


# Steps ------------------------------------------------------------------------------------------------------------
def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: ref.shape for name, ref in checkpoint.tensors.items()}


def _plan(checkpoint: Checkpoint, options: Options) -> tuple[torch.nn.Module, Plan]:
    """The model to fill, without storage, and what becomes of every parameter."""
    import oneref_hf

    shapes = _shapes(checkpoint)
    task = infer_task(shapes) if options.task == "auto" else options.task
    sizes = infer_config(shapes, task)
    if options.image_size is not None:
        sizes["image_size"] = options.image_size
    if sizes["image_size"] % sizes["patch_size"]:
        raise KeyMismatch(f"the image size {sizes['image_size']} is not a multiple of the patch {sizes['patch_size']}")
    model_class = getattr(oneref_hf, TASKS[task].model_class)
    config = model_class.config_class(**sizes)
    if task == "segmentation" and checkpoint.facts.get("args", {}).get("use_regress_box") is False:
        config.trained_on_masks_only = True
    with torch.device("meta"):
        model = model_class(config)
    target_shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return model, map_state_dict(shapes, target_shapes, task, options.allow_unused)


def _tensors_to_write(
    checkpoint: Checkpoint, model: torch.nn.Module, plan: Plan, dtype: torch.dtype | None
) -> list[TensorToWrite]:
    wanted, tensors = model.state_dict(), []
    for assignment in plan.assignments:
        shape = tuple(wanted[assignment.target].shape)
        stored = checkpoint.tensors[assignment.sources[0]].dtype
        for source in assignment.sources[1:]:
            stored = torch.promote_types(stored, checkpoint.tensors[source].dtype)
        if stored.is_floating_point != wanted[assignment.target].is_floating_point():
            raise ConversionError(
                f"{assignment.sources[0]} is of type {stored}, which does not fit {assignment.target}."
            )
        written = dtype if dtype is not None and stored.is_floating_point else stored
        make = _maker(checkpoint, assignment, shape, written)
        tensors.append(TensorToWrite(assignment.target, shape, written, make))
    return tensors


def _maker(
    checkpoint: Checkpoint, assignment: Assignment, shape: tuple[int, ...], dtype: torch.dtype
) -> Callable[[], Iterator[torch.Tensor]]:
    def make() -> Iterator[torch.Tensor]:
        for source in assignment.sources:
            for values in _source_values(checkpoint, source, shape):
                yield cast(assignment.target, values, dtype)

    return make


def _source_values(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The values of a source parameter in order, in flat pieces; a table of positions made for `shape`."""
    if name == VISION_POSITIONS and checkpoint.tensors[name].shape != shape:
        yield resize_positions(checkpoint.read(name), shape[0]).reshape(-1)
    else:
        yield from checkpoint.blocks(name)


def verify(
    folder: Path, files: dict[str, str], checkpoint: Checkpoint, plan: Plan, tensors: Sequence[TensorToWrite]
) -> None:
    """Compares what was written, bit for bit, with the source (cast to the written type).

    The configuration is loaded, and the model that it describes must want exactly what the files hold.
    """
    import oneref_hf

    model_class = getattr(oneref_hf, TASKS[plan.task].model_class)
    with torch.device("meta"):
        wanted = model_class(model_class.config_class.from_pretrained(folder)).state_dict()
    tensor_of = {tensor.name: tensor for tensor in tensors}
    held = {}
    for file in sorted(set(files.values())):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                held[name] = tuple(opened.get_slice(name).get_shape()), opened.get_slice(name).get_dtype()
    expected = {
        name: (tuple(value.shape), DTYPE_NAMES[tensor_of[name].dtype])
        for name, value in wanted.items()
        if name not in plan.fresh
    }
    refuse_differences([name for name in {**expected, **held} if expected.get(name) != held.get(name)])

    differing = []
    offsets = {file: tensor_offsets(folder / file) for file in set(files.values())}
    for assignment in plan.assignments:
        file, tensor = files[assignment.target], tensor_of[assignment.target]
        with (folder / file).open("rb", buffering=0) as written:
            written.seek(offsets[file][assignment.target])
            for name in assignment.sources:
                for values in _source_values(checkpoint, name, tensor.shape):
                    bits = values.to(tensor.dtype).view(torch.uint8).numpy()
                    if not np.array_equal(bits, np.frombuffer(written.read(bits.nbytes), dtype=np.uint8)):
                        differing.append(f"{assignment.target} (from {name})")
                        break
    refuse_differences(differing)


def verify_processor(folder: Path, tokenizer: Path, image_size: int) -> None:
    """Loads the processor back: its ids must be those of the SentencePiece model, its pictures of the model's size."""
    from tokenizer import check_tokenizer

    from oneref_hf import OneRefProcessor

    try:
        processor = OneRefProcessor.from_pretrained(folder)
    except Exception as error:  # the tokenizers library's own errors have no narrower type
        raise ConversionError(f"The processor that was written does not load back: {_one_line(error)}") from error
    try:
        check_tokenizer(processor.tokenizer, tokenizer)
    except ValueError as error:
        raise ConversionError(f"The tokenizer that was written has other ids than '{tokenizer}'.") from error
    size = processor.image_processor.size
    if (size["height"], size["width"]) != (image_size, image_size):
        raise ConversionError(f"The processor that was written makes pictures of {size}, not of {image_size} pixels.")


def _save_definition(folder: Path, model: torch.nn.Module, dtype: str) -> None:
    """Configuration, and the code that lets the directory load where `oneref_hf` is not installed."""
    with without_progress_bars():  # of the weights, of which none are saved here
        model.to(getattr(torch, dtype)).save_pretrained(folder, state_dict={})


def _save_processor(folder: Path, tokenizer: Path, config) -> None:
    from tokenizer import build_tokenizer

    from oneref_hf import OneRefImageProcessorPil, OneRefProcessor

    built = build_tokenizer(tokenizer)
    if len(built) > config.vocab_size:
        raise ConversionError(
            f"The tokenizer '{tokenizer}' has {len(built)} words and the checkpoint {config.vocab_size}; "
            "they do not belong together."
        )
    size = {"height": config.image_size, "width": config.image_size}
    OneRefProcessor(OneRefImageProcessorPil(size=size), built).save_pretrained(folder)


def write_card(folder: Path, title: str, report: dict, row: ModelRow | None = None) -> None:
    """The model card of a converted directory: the full one of a released model, else a short one."""
    source = report["source"]
    if row is None:
        origin = source["file"] if source["member"] is None else f"{source['file']}::{source['member']}"
        card = CARD.format(**report, title=title, origin=origin)
    else:
        card = released_card(row, source["sha256"])
    (folder / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _checksum_meanwhile(source: Source, wanted: bool) -> Iterator[Callable[[], str | None]]:
    """The source's SHA-256: the one the Hub gave, or, if wanted, computed beside the conversion.

    Yields a function that waits for it. Computing reads all of the file, two thirds of which the conversion skips.
    """
    if source.checksum is not None or not wanted:
        yield lambda: source.checksum
        return
    cancelled = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(sha256, source.path, cancelled.is_set)
        try:
            yield future.result
        finally:
            cancelled.set()


# Command line -----------------------------------------------------------------------------------------------------
def convert_all(pattern: str, root: Path, tokenizer: Path | None, options: Options) -> bool:
    """Converts the released models whose name fits, each to a folder of its name; returns whether all are there.

    Models that have a report in their folder are left as they are unless `options.overwrite`: skipped, or where the
    report says that they were converted with other options, listed as differing, which counts as not being there.
    Neither that nor a failure stops the rest.
    """
    rows = [row for row in load_manifest() if fnmatch.fnmatch(row.name, pattern)]
    if not rows:
        raise ConversionError(f"No released model has a name like '{pattern}'.")
    table = [
        (row.name, *_convert_one(row, root / row.name, tokenizer, _options_for(row, options)))
        for row in tqdm(rows, unit="model", disable=None)
    ]
    width = max(len(name) for name, _, _ in table)
    for name, outcome, detail in table:
        print(f"{name:{width}}  {outcome:9}  {detail}")
    return all(outcome in ("converted", "skipped") for _, outcome, _ in table)


def _convert_one(row: ModelRow, output: Path, tokenizer: Path | None, options: Options) -> tuple[str, str]:
    """Outcome and details of one of many models."""
    start = time.monotonic()
    try:
        if (output / REPORT_FILE).exists() and not options.overwrite:
            differences = _differences(output, tokenizer, options)
            if differences:
                return "DIFFERS", f"exists with {', '.join(differences)}; --overwrite converts it again"
            return "skipped", "done before"
        source = released(row.name)
        if row.kind == "tokenizer":
            import convert_vqkd

            report = convert_vqkd.convert(
                source, output, options.dtype, options.allow_unused, options.verify, options.overwrite
            )
        else:
            report = convert(source, output, tokenizer, options)
    except (ValueError, OSError) as error:
        return "FAILED", _one_line(error)
    return "converted", f"{report['bytes'] / 1e9:.2f} GB in {time.monotonic() - start:.0f} s"


def _differences(output: Path, tokenizer: Path | None, options: Options) -> list[str]:
    """In what a finished directory, going by its report, is not what the options ask for."""
    try:
        report = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))
        wanted = {"task": options.task, "dtype": report["source"]["dtype"]}
        if options.dtype is not None:
            wanted["dtype"] = str(options.dtype).removeprefix("torch.")
        if options.task != "tokenizer":  # which interpolates its positions when it runs
            wanted["image_size"] = options.image_size or report["source"]["image_size"]
        found = [
            f"{name.replace('_', ' ')} {report[name]} instead of {value}"
            for name, value in wanted.items()
            if report[name] != value
        ]
        return found + (["no processor"] if tokenizer is not None and report.get("processor") is False else [])
    except (ValueError, KeyError, TypeError):
        return [f"a {REPORT_FILE} that does not say how it was made"]


def _options_for(row: ModelRow, options: Options) -> Options:
    """The task of a released model is known, so a file that turns out to be something else is an error.

    A tokenizer serves no other task.
    """
    return replace(options, task=row.kind) if options.task == "auto" or row.kind == "tokenizer" else options


def summary(report: dict, output: Path) -> str:
    """What the conversion did, for people."""
    reasons = Counter(report["dropped"].values())
    lines = [
        f"Wrote {output}: {report['model_class']}, {report['parameters']:,} parameters, {report['dtype']}, "
        f"{report['image_size']} pixels"
        + (", compared with the source." if report["verified"] else ", not compared."),
        f"Mapped {sum(map(len, report['mapped'].values()))} original tensors to {len(report['mapped'])}.",
        *(f"Dropped {count}: {reason}." for reason, count in reasons.items()),
    ]
    if report["fresh"]:
        lines.append(f"Left fresh: {', '.join(report['fresh'])}.")
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = source_options(parser, "model")
    what.add_argument("--all", action="store_true", help="every released model")
    parser.add_argument("--only", metavar="GLOB", help="with --all: only names like this")
    parser.add_argument(
        "--tokenizer",
        metavar="SPM",
        help="SentencePiece model beit3.spm (a file or hf://...); released models fetch it",
    )
    parser.add_argument("--no-tokenizer", action="store_true", help="write the model without a processor")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="directory to write (with --all: its parent); released models: converted/NAME",
    )
    parser.add_argument("--task", choices=["auto", *TASKS], default="auto", help="default: what the heads are for")
    parser.add_argument("--image-size", type=int, metavar="N", help="interpolate the positions to N x N pixels")
    parser.add_argument("--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="default: 5GB")
    parser.add_argument(
        "--checksum", action="store_true", help="report the SHA-256 of a local file, which means reading all of it"
    )
    writing_options(parser)
    options = parser.parse_args(arguments)
    if options.only and not options.all:
        parser.error("--only goes with --all")
    if options.checkpoint and options.output is None:
        parser.error("--output is missing")
    if options.checkpoint and (options.tokenizer is None) != options.no_tokenizer:
        parser.error("give either --tokenizer (the SentencePiece model beit3.spm) or --no-tokenizer")
    if options.image_size is not None and options.image_size < 1:
        parser.error("--image-size must be positive")
    return options


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(arguments: argparse.Namespace) -> bool:
    options = Options(
        task=arguments.task,
        dtype=DTYPES.get(arguments.dtype),
        image_size=arguments.image_size,
        max_shard_size=arguments.max_shard_size,
        allow_unused=arguments.allow_unused,
        verify=not arguments.no_verify,
        checksum=arguments.checksum,
        overwrite=arguments.overwrite,
    )
    tokenizer = None
    if arguments.tokenizer is not None:
        tokenizer = resolve(arguments.tokenizer).path
    elif not arguments.no_tokenizer:
        tokenizer = released_tokenizer()
    if arguments.all:
        return convert_all(arguments.only or "*", arguments.output or DEFAULT_ROOT, tokenizer, options)
    output = arguments.output or DEFAULT_ROOT / arguments.name
    if arguments.name is not None:
        row = released_row(arguments.name)
        if row.kind == "tokenizer":
            raise ConversionError(f"'{arguments.name}' is a VQ-KD visual tokenizer; use convert_vqkd.py --name.")
        source, options = released(arguments.name), _options_for(row, options)
    else:
        source = resolve(arguments.checkpoint)
    print(summary(convert(source, output, tokenizer, options, show_progress=sys.stderr.isatty()), output))
    return True


def main(arguments: list[str] | None = None) -> int:
    parsed = _parse(arguments)
    if sys.stderr.isatty():  # somebody is waiting
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("checkpoint_reader").setLevel(logging.INFO)
    try:
        return 0 if _run(parsed) else 1
    except (ValueError, OSError) as error:
        print(f"convert_oneref: {_one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written stays
    sys.exit(main())
