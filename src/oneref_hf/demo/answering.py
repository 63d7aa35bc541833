# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From an upload and phrases to what the page shows."""

import base64
import ctypes
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from ..data.exports import LabelledPicture, coco_dataset
from ..visualization import answer_colour, draw_heatmap, draw_layers, rgb_picture


MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 40
MAX_PHRASES = 10
MAX_PHRASE_LENGTH = 500
# Pixels of the longer side at which pictures are asked and shown; the models see no more than 384 of them.
SHOWN_SIDE = 1280

# What is opened; Pillow knows many more, and one of them runs another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")

_LIMIT = f"the page takes up to {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels. Make it smaller and try again."
TOO_LARGE = "“{name}” is too large: " + _LIMIT
UNREADABLE = (
    "“{name}” cannot be read: it is no picture, or a broken one. Try another JPEG, PNG, WebP, GIF or TIFF file."
)

_ROTATED = (5, 6, 7, 8)  # values of EXIF's orientation that swap height and width
_DRAFT_MODES = ("L", "RGB", "CMYK", "YCbCr")  # 8 bits per channel: may be made smaller before they are converted


class Problem(Exception):
    """A sentence for the visitor: what is wrong, and what to do."""


class ModelSlot:
    """A model that takes a while to load, during which the page is served already.

    Args:
        name: for the page.
        shipped: whether it is the small model that ships with the package, which knows drawn scenes alone.
    """

    def __init__(self, name: str, shipped: bool = False):
        self.name = name
        self.shipped = shipped
        self._started = time.monotonic()
        self._ready = threading.Event()
        self._finder = None

    def load(self, load: Callable):
        """Fills the slot with the pipeline that `load` returns."""
        self._finder = load()
        self._ready.set()

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def seconds(self) -> int:
        """Since loading began."""
        return int(time.monotonic() - self._started)

    def finder(self):
        """The pipeline, as soon as it is there."""
        self._ready.wait()
        return self._finder


@dataclass(frozen=True)
class Upload:
    """A picture to be asked.

    name: of the file.
    size: `(height, width)` of the file, the right way up.
    picture: RGB, the right way up, with `SHOWN_SIDE` pixels on the longer side if the file has more.
    """

    name: str
    size: tuple[int, int]
    picture: Image.Image


def read_phrases(text: str | None) -> list[str]:
    """The phrases of a text, one a line; empty lines do not count.

    Raises:
        Problem: if there are none, too many, or one is too long.
    """
    phrases = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
    if not phrases:
        raise Problem("There is no phrase yet. Type what to find, for example “the left cup”, one phrase per line.")
    if len(phrases) > MAX_PHRASES:
        raise Problem(
            f"These are {len(phrases)} phrases, and the page takes up to {MAX_PHRASES} at once. Remove some."
        )
    for number, phrase in enumerate(phrases, start=1):
        if len(phrase) > MAX_PHRASE_LENGTH:
            raise Problem(
                f"Phrase {number} has {len(phrase)} characters, and the page takes up to {MAX_PHRASE_LENGTH}. "
                "Say it in fewer words."
            )
    return phrases


def read_upload(path: str | None) -> Upload:
    """An uploaded picture.

    Raises:
        Problem: if there is none, it is too large, or it cannot be read.
    """
    if path is None:
        raise Problem("There is no picture yet. Choose, drop or paste one, or take an example.")
    name = Path(path).name
    try:
        if Path(path).stat().st_size > MAX_MEGABYTES * 2**20:
            raise Problem(TOO_LARGE.format(name=name))
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_MEGAPIXELS * 1e6:
                raise Problem(f"“{name}” is too large with its {width} × {height} pixels: {_LIMIT}")
            if image.mode in _DRAFT_MODES:
                image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            picture = rgb_picture(image)
            # Asked last, because Pillow turns a TIFF file by itself and then forgets that it had to.
            if image.getexif().get(ExifTags.Base.Orientation) in _ROTATED:
                width, height = height, width
    except Problem:
        raise
    except FileNotFoundError as error:
        raise Problem(
            f"“{name}” is no longer here, for uploads are deleted after a while. Choose it again."
        ) from error
    except Image.DecompressionBombError as error:
        raise Problem(TOO_LARGE.format(name=name)) from error
    except Exception as error:  # decoders fail in every possible way
        raise Problem(UNREADABLE.format(name=name)) from error
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return Upload(name, (height, width), picture)


def answer(finder, upload: Upload, phrases: list[str]) -> dict:
    """What the page shows of a question.

    Args:
        finder: a `ReferringExpressionPipeline`.

    Returns:
        `name`, `height`, `width` of the file; `seconds` that the model took; `answers`, each with `phrase`, `score`,
        `box` (x0, y0, x1, y1 in pixels of the file), `colour` (CSS), `heat` (address of the similarity map laid over
        the picture), `low` and `high` (its extremes, cosines); `picture`, the address of the picture; `layers` to lay
        over it from the lowest to the topmost: `answer` (its number), `kind`, `src` and `left`, `top`, `width` in
        percent of the picture's width or height; `json`, the answers as the text of a COCO file.
    """
    picture = upload.picture
    started = time.perf_counter()
    found = finder(picture, phrases, heatmap=True)
    seconds = time.perf_counter() - started
    layers = [
        {
            "answer": layer.answer,
            "kind": layer.kind,
            "src": data_address(layer.overlay, "PNG", compress_level=3),
            "left": 100 * layer.left / picture.width,
            "top": 100 * layer.top / picture.height,
            "width": 100 * layer.overlay.width / picture.width,
        }
        for layer in draw_layers((picture.height, picture.width), found)
    ]
    answers = []
    for number, one in enumerate(found):
        heatmap = one.pop("heatmap")
        answers.append(
            {
                "heat": data_address(draw_heatmap(picture, heatmap), "JPEG", quality=88),
                "low": float(heatmap.min()),
                "high": float(heatmap.max()),
                "colour": "rgb({}, {}, {})".format(*answer_colour(number)),
            }
        )
    found = [_in_pixels_of_the_file(one, upload) for one in found]
    for shown, one in zip(answers, found):
        shown |= {"phrase": one["label"], "score": one["score"], "box": list(one["box"].values())}
    dataset = coco_dataset([LabelledPicture(upload.name, upload.size, found)])
    return {
        "name": upload.name,
        "height": upload.size[0],
        "width": upload.size[1],
        "seconds": seconds,
        "picture": data_address(picture, "JPEG", quality=92),
        "layers": layers,
        "answers": answers,
        "json": json.dumps(dataset, ensure_ascii=False),
    }


def return_memory() -> None:
    """Gives unused memory back, which glibc keeps for each of a server's many threads; elsewhere it does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _in_pixels_of_the_file(found: dict, upload: Upload) -> dict:
    height, width = upload.size
    scales = {"x": width / upload.picture.width, "y": height / upload.picture.height}
    scaled = {**found, "box": {name: round(value * scales[name[0]], 2) for name, value in found["box"].items()}}
    if "mask" in found:
        scaled["mask"] = found["mask"].resize((width, height), Image.Resampling.NEAREST)
    return scaled


def data_address(image: Image.Image, kind: str, **options) -> str:
    """The picture as a data address."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
