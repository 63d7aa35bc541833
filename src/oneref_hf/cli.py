# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The `oneref` command.

`main` parses and runs; `build_parser` lists the subcommands. A subcommand is a function that adds its parser, with
`run=` set to what takes the parsed options. Whatever is slow to import, torch above all, is imported while running, so
that `--help` need not wait for it. What the user can mend raises `CommandError`, which ends the command with one
sentence on stderr and without a traceback.
"""

import argparse
import io
import json
import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import ERROR, getLogger
from pathlib import Path

from . import SMALL_MODEL
from .commands import demo, export, predict


EXAMPLE = 18  # a scene of the split "test"
EXAMPLE_OUTPUT = Path("oneref-example.png")
URL_TIMEOUT = 60  # seconds


class CommandError(Exception):
    """A sentence for the user: what is wrong, where, and what to do.

    Args:
        sentence: for stderr.
        exit_code: 1 for bad input, 2 for a call that could never work.
    """

    def __init__(self, sentence: str, exit_code: int = 1):
        super().__init__(sentence)
        self.exit_code = exit_code


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 for bad input, 2 for bad usage, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        if options.verbose:
            traceback.print_exc()
        print(f"oneref: {_printable(str(error), sys.stderr)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`oneref ... | head`); without this Python complains once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="oneref", description="OneRef: find the box and the mask of what a phrase means in a picture."
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_ground(subparsers)
    predict.add_parser(subparsers)
    demo.add_parser(subparsers)
    export.add_parser(subparsers)
    for command in subparsers.choices.values():
        command.add_argument("--verbose", action="store_true", help="show warnings, progress bars and tracebacks")
    return parser


# --------------------------------------------------------------------------------------------------------------------
# oneref ground
# --------------------------------------------------------------------------------------------------------------------


def add_ground(subparsers):
    """Adds `oneref ground` to the command line."""
    parser = subparsers.add_parser(
        "ground",
        help="find phrases in a picture",
        description="Finds what phrases mean in a picture: prints scores and boxes (x0, y0, x1, y1 in pixels), and "
        "draws them on request.",
        epilog="examples: oneref ground --example --output out.png; "
        'oneref ground table.jpg "the left cup" --model DIR --output out.png',
    )
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="a file, a URL, or - for standard input")
    parser.add_argument("phrases", metavar="PHRASE", nargs="*", help="what to find")
    parser.add_argument(
        "--example",
        nargs="?",
        type=int,
        const=EXAMPLE,
        metavar="NUMBER",
        help="draw a scene and ask for things in it, instead of IMAGE and PHRASE; another NUMBER is another scene",
    )
    add_model_options(parser)
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="draw the answers on the picture and write it here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--mask", action="store_true", help="draw masks, and write each as a PNG beside the output")
    parser.add_argument("--heatmap", action="store_true", help="write each similarity map as a PNG beside the output")
    parser.add_argument("--figure", action="store_true", help="make the output a row of panels for each phrase")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="SCORE", help="leave out answers with a lower score (0 to 1)"
    )
    parser.set_defaults(run=ground)


def ground(options: argparse.Namespace):
    """Answers the phrases that the options name.

    Raises:
        CommandError: if the options cannot go together, or the picture, a phrase, the model or the output is unusable.
    """
    # Everything that can be wrong is checked before the model is loaded, which takes longest.
    if options.example is not None:
        if options.image is not None or options.example < 0:
            wrong = "IMAGE and PHRASE" if options.image is not None else f"the number {options.example}"
            raise CommandError(f"--example draws a scene of its own; leave out {wrong}.", exit_code=2)
        options.output = options.output or EXAMPLE_OUTPUT
    elif not options.phrases:
        missing = "IMAGE and PHRASE are" if options.image is None else "PHRASE is"
        raise CommandError(
            f'{missing} missing; give them, for instance photo.jpg "the left cup", or --example.',
            exit_code=2,
        )
    for position, phrase in enumerate(options.phrases, start=1):
        if not phrase.strip():
            raise CommandError(f"Phrase {position} is empty; say what to find.")
        with refusing(UnicodeEncodeError, prefix=f"Phrase {position} is not valid text: "):
            phrase.encode()
    if options.output is None:
        for name in ("mask", "heatmap", "figure"):
            if getattr(options, name):
                raise CommandError(f"--{name} makes pictures, so it needs --output FILE.", exit_code=2)
    else:
        check_picture_output(options.output)
    if not 0 <= options.threshold <= 1:
        raise CommandError(f"--threshold is a score from 0 to 1, not {options.threshold:g}.", exit_code=2)
    model = options.model or default_model()

    with quiet(options.verbose):
        if options.example is not None:
            from .data.scenes.showcase import showcase

            picture, options.phrases = showcase(options.example)
        else:
            picture = read_picture(options.image)
        finder = load_finder(model, options.device, options.dtype, options.trust_remote_code)
        with refusing(ValueError, OSError, RuntimeError):
            answers = finder(
                picture,
                options.phrases,
                mask=True if options.mask else None if options.figure else False,
                heatmap=options.heatmap or options.figure,
                threshold=options.threshold,
            )
        files = [{} for _ in answers]
        if options.output is not None:
            files = _write_pictures(picture, answers, options)
    if options.json:
        records = [json.dumps(_record(*row)) for row in zip(options.phrases, answers, files)]
        print("[\n  " + ",\n  ".join(records) + "\n]")
    else:
        _print_table(options.phrases, answers)
        if options.output is not None:
            written = [options.output, *(path for paths in files for path in paths.values())]
            print("\nwritten:", *(_printable(str(path), sys.stdout) for path in written))


def _write_pictures(picture, answers: list[dict | None], options: argparse.Namespace) -> list[dict[str, Path]]:
    """Writes the output, and the masks and heat maps beside it; returns the paths of these for each answer."""
    from .visualization import draw_answers, draw_figure, draw_heatmap

    pictures = {options.output: (draw_figure if options.figure else draw_answers)(picture, answers)}
    files = []
    for position, answer in enumerate(answers, start=1):
        paths = {}
        if answer is not None and options.mask:
            paths["mask"] = options.output.with_name(f"{options.output.stem}.mask{position}.png")
            pictures[paths["mask"]] = answer["mask"]
        if answer is not None and options.heatmap:
            paths["heatmap"] = options.output.with_name(f"{options.output.stem}.heatmap{position}.png")
            pictures[paths["heatmap"]] = draw_heatmap(picture, answer["heatmap"])
        files.append(paths)
    write_pictures(pictures)
    return files


def _record(phrase: str, answer: dict | None, files: dict[str, Path]) -> dict:
    found = {"score": None, "box": None}
    if answer is not None:
        found = {"score": round(answer["score"], 6), "box": list(answer["box"].values())}
    return {"phrase": phrase, **found, **{name: str(path) for name, path in files.items()}}


def _print_table(phrases: list[str], answers: list[dict | None]):
    names = [_printable(" ".join(phrase.split()), sys.stdout) for phrase in phrases]
    widest = max(_columns(name) for name in ["phrase", *names])
    rows = [("phrase", "score", "x0", "y0", "x1", "y1")]
    for name, answer in zip(names, answers):
        numbers = ["-"] * 5
        if answer is not None:
            numbers = [f"{answer['score']:.4f}", *(f"{value:.1f}" for value in answer["box"].values())]
        rows.append((name, *numbers))
    for name, *numbers in rows:
        print(name + " " * (widest - _columns(name)), *(f"{number:>8}" for number in numbers))


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes: East Asian characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


# --------------------------------------------------------------------------------------------------------------------
# For all subcommands
# --------------------------------------------------------------------------------------------------------------------


def add_model_options(parser: argparse.ArgumentParser):
    """Adds the options that choose a model, its device and its number format."""
    parser.add_argument(
        "--model", metavar="DIR_OR_HUB_ID", help="the OneRef model to ask (default: a small one for drawn scenes)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: an accelerator if there is one)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="number format of the weights (default: as saved)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help=predict.TRUST_HELP)


def default_model() -> str:
    """The model to use without --model, a small one that comes with the package."""
    print(
        "oneref: a small model answers, which knows drawn scenes and no photographs; for those convert a released one "
        "(python conversion/convert_oneref.py --name res-base-mixed) and give --model.",
        file=sys.stderr,
    )
    return str(SMALL_MODEL)


def load_finder(model: str, device: str | None, dtype: str, trust_remote_code: bool = False):
    """The referring-expression pipeline of a model.

    Raises:
        CommandError: if there is no such model, it cannot answer phrases, or the device cannot be used.
    """
    import torch

    from .pipeline_oneref import AutoModelForReferringExpression, ReferringExpressionPipeline
    from .processing_oneref import OneRefProcessor

    if device is not None:
        with refusing(Exception, prefix=f"The device '{device}' cannot be used: "):
            torch.zeros(1, device=device).item()
    check_model_source(model)
    known = f"The model '{model}'" if Path(model).is_dir() else f"There is no directory '{model}', and the Hub's model"
    with refusing(Exception, prefix=f"{known} cannot be loaded: "), _naming_unknown_id(model):
        return ReferringExpressionPipeline(
            model=AutoModelForReferringExpression.from_pretrained(
                model, dtype=dtype, trust_remote_code=trust_remote_code
            ),
            processor=OneRefProcessor.from_pretrained(model),
            device=device,
        )


@contextmanager
def _naming_unknown_id(model: str) -> Iterator[None]:
    """Says in one sentence that the Hub has no such model, for which Transformers takes several."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except OSError as error:
        if not isinstance(error.__cause__, RepositoryNotFoundError):
            raise
        raise CommandError(
            f"There is no directory '{model}', and the Hub has no model of that name that you may see; check the "
            "name, or log in with `hf auth login` if it is private."
        ) from error


def check_model_source(model: str):
    """Finds out, before anything is loaded, whether that can be a model's directory or its id on the Hub.

    Raises:
        CommandError: if it can be neither.
    """
    path = Path(model)
    if path.is_file():
        raise CommandError(
            f"'{model}' is a file, but a model is a directory; conversion/convert_oneref.py makes one of a checkpoint."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CommandError(f"The directory '{model}' is not a model, for it has no config.json.")
    elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise CommandError(f"There is no model directory '{model}'; check the path.")


def read_picture(source: str):
    """The picture in a file, behind a URL, or (`-`) on standard input."""
    from PIL import Image

    from .pipeline_oneref import open_picture

    if source != "-":
        with refusing(ValueError, OSError):
            return open_picture(source, timeout=URL_TIMEOUT)
    with refusing(Exception, prefix="Standard input is not a readable picture: "):
        picture = Image.open(io.BytesIO(sys.stdin.buffer.read()))
        picture.load()
    return picture


def check_picture_output(path: Path):
    """Finds out beforehand, as far as possible, whether a picture can be written there.

    Raises:
        CommandError: if the ending names no picture format, or the folder is missing or cannot be written to.
    """
    from PIL import Image

    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise CommandError(f"The ending of '{path}' names no picture format; use .png, .jpg or .webp, for example.")
    if os.path.isdir(path) or not os.path.isdir(path.parent) or not os.access(path.parent, os.W_OK):
        raise CommandError(f"'{path}' cannot be written: its folder must exist and let you write.")


def write_pictures(pictures: dict):
    """Writes pictures by path, each under a temporary name first, so that none appears incomplete or alone."""
    from PIL import Image

    formats = Image.registered_extensions()
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in pictures}
    try:
        for path, picture in pictures.items():
            with refusing(OSError, ValueError, prefix=f"'{path}' cannot be written: "):
                picture.save(partial[path], format=formats[path.suffix.lower()], quality=95)
        for path in pictures:
            with refusing(OSError, prefix=f"'{path}' cannot be written: "):
                os.replace(partial[path], path)
    finally:
        for path in partial.values():
            with suppress(OSError):  # never there, or of a name that is too long
                path.unlink()


@contextmanager
def refusing(*exceptions: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turns exceptions that the user's input causes into `CommandError`, with the first line of their message.

    Raises:
        CommandError: if the block raises one, or one of the exceptions.
    """
    try:
        yield
    except CommandError:
        raise
    except exceptions as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(prefix + lines[0]) from error


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keeps warnings and progress bars of the libraries off the terminal, unless they are wanted."""
    if verbose:
        yield
        return
    # Transformers imports torchao where it is installed, and that tells of kernels for other machines.
    for name in ("torchao", "torch.utils._pytree"):
        getLogger(name).setLevel(ERROR)
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        for enabled, enable in zip(bars, (logging.enable_progress_bar, hub.enable_progress_bars)):
            if enabled:
                enable()


def _printable(text: str, stream) -> str:
    """The text without what the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
