# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref predict`: answers for a whole data set, as Parquet shards.

    oneref predict --model DIR --dataset my_data/phrases.jsonl --output predictions
    accelerate launch --num_processes 8 --no_python oneref predict --model DIR --dataset OWNER/NAME --output DIR

Without a GPU, `--config_file training/accelerate/multi_cpu.yaml` makes accelerate start more than one process.
`training/evaluate.py` has its options and its way from them to a model and data from here.
"""

import argparse
import os
import time
from contextlib import contextmanager


TRUST_HELP = "let a model that was exported as torch_export or aotinductor run the code it holds"
# Seconds until another process fails as well, for the launcher ends the main one as soon as that happens.
_FIRST_SAY = 5


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Adds `oneref predict` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="find the phrases of a whole data set",
        description="Answers every phrase of a data set with a score, a box and, if the model segments, a mask, and "
        "writes Parquet shards. Called again, it continues where it stopped, on any number of processes.",
        epilog="on several processes: accelerate launch --num_processes N --no_python oneref predict ...",
    )
    add_run_options(parser)
    parser.add_argument("--split", help="which split (default: the only one, or every row of a file)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the shards")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace):
    """Answers the data set that the options name."""
    from ..cli import CommandError

    with complaints_as(CommandError):
        from ..prediction import predict, write_malformed

        session = Session(options)
        data = session.data(options.split)
        model, processor = session.model()
        shards = predict(
            model,
            processor,
            data.records,
            options.output,
            accelerator=session.accelerator,
            settings={"dataset": data.fingerprint, "split": options.split},
            run=session.run,
        )
        session.end()
        if not session.accelerator.is_main_process:
            return
        malformed = write_malformed(data, options.output, options.limit)
    print(f"written: {options.output}, {len(shards)} shards")
    if malformed is not None:
        print(f"malformed rows left out: {len(data.problems_within(options.limit))}, listed in {malformed}")


def add_run_options(parser: argparse.ArgumentParser):
    """What predicting and evaluating have in common."""
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="the OneRef model to ask")
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="DIR_OR_NAME",
        help="a file (.jsonl, .csv, .tsv, COCO .json, .parquet), a directory, or OWNER/NAME[:CONFIG] on the Hub",
    )
    parser.add_argument("--images", metavar="DIR", help="folder that the picture paths are relative to")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="FIELD=COLUMN",
        help="which column holds a field, e.g. phrase=caption box_xywh=bbox; or the name of a layout",
    )
    parser.add_argument("--streaming", action="store_true", help="read the data set as it goes, store nothing")
    parser.add_argument("--strict", action="store_true", help="stop at the first row that cannot be used")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N phrases only")
    parser.add_argument(
        "--batch-size", default="auto", metavar="N", help="phrases at a time (default: auto, as many as fit)"
    )
    parser.add_argument("--shard-rows", type=int, default=256, metavar="N", help="phrases per shard (default: 256)")
    parser.add_argument("--num-threads", type=int, metavar="N", help="for reading pictures (default: up to 8)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="number format of the weights (default: as saved)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever the output holds")


class Session:
    """The processes, the data and the model that options ask for. Data come first, as a model takes long to load."""

    def __init__(self, options: argparse.Namespace):
        from ..prediction import Run, make_accelerator

        self.options = options
        self.column_mapping = _column_mapping(options.columns)
        self.run = Run(
            batch_size=_batch_size(options.batch_size),
            shard_rows=options.shard_rows,
            limit=options.limit,
            num_threads=options.num_threads,
            overwrite=options.overwrite,
            strict=options.strict,
        )
        self.accelerator = make_accelerator()
        if not self.accelerator.is_main_process:
            _hush()

    def data(self, split: str | None):
        """One split of the data set, `ReferringData`."""
        from ..data.loading import open_referring_data
        from ..prediction import main_first

        options = self.options
        arguments = (options.dataset, split, options.streaming, self.column_mapping, options.images, options.strict)
        return main_first(self.accelerator, lambda: open_referring_data(*arguments))

    def model(self):
        """The model and its processor."""
        from ..cli import quiet
        from ..prediction import load_model, main_first

        arguments = (self.options.model, self.options.dtype, self.options.trust_remote_code)
        with quiet(verbose=False):
            return main_first(self.accelerator, lambda: load_model(*arguments))

    def end(self):
        """Closes the connections to the other processes, which would otherwise break when the first of them ends."""
        self.accelerator.end_training()


@contextmanager
def complaints_as(kind: type[Exception]):
    """Turns what the user can mend into `kind`; what all of several processes know, only the main one says.

    Raises:
        SystemExit: in the other processes, instead.
    """
    from ..data.sources import DatasetError
    from ..prediction import PredictionError, ProcessError

    try:
        yield
    except (DatasetError, PredictionError, ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError):
            error = PredictionError(f"The package {error.name} is missing: pip install 'oneref-hf[train]'.")
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            raise kind(str(error)) from error
        if isinstance(error, ProcessError):
            raise kind(f"process {rank}: {error}") from error
        time.sleep(_FIRST_SAY)
        raise SystemExit(1) from error


def _batch_size(text: str) -> int | None:
    from ..prediction import PredictionError

    if text == "auto":
        return None
    if not text.isdecimal():
        raise PredictionError(f"--batch-size is a number or 'auto', not {text!r}.")
    return int(text)


def _column_mapping(columns: list[str] | None) -> dict[str, str] | str | None:
    from ..prediction import PredictionError

    if columns is None:
        return None
    if len(columns) == 1 and "=" not in columns[0]:
        return columns[0]
    wrong = [column for column in columns if not all(column.partition("="))]
    if wrong:
        raise PredictionError(f"--columns wants FIELD=COLUMN, not {wrong[0]!r}.")
    return dict(column.split("=", 1) for column in columns)


def _hush():
    """All but the main process keep their warnings and progress bars to themselves."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.get_logger("oneref_hf").setLevel(logging.ERROR)
