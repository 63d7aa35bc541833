# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Answers as annotations that a person corrects: COCO JSON and Label Studio JSON, there and back.

    labelled = [labelled_picture(path, finder(path, phrases), folder) for path in paths]
    write_json(folder / "coco.json", coco_dataset(labelled))
    write_json(folder / "label_studio.json", label_studio_tasks(labelled))

`load_referring_dataset("coco.json", None)` reads the corrected COCO file. Where a tool keeps the category of an
annotation and forgets its phrase, `phrases_from_categories` puts it back. `label_studio_rows` makes rows for a JSON
Lines file of what Label Studio exports as JSON; the labelling interface to set there is `LABEL_STUDIO_CONFIG`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from .records import open_image
from .sources import DatasetError


# One region per phrase, whose text can be edited.
LABEL_STUDIO_CONFIG = """\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="box" toName="image" canRotate="false">
    <Label value="referred" background="#56B4E9"/>
  </RectangleLabels>
  <BrushLabels name="mask" toName="image"><Label value="referred" background="#56B4E9"/></BrushLabels>
  <TextArea name="phrase" toName="image" perRegion="true" editable="true" maxSubmissions="1"
            displayMode="region-list" placeholder="what a person would say to point at it"/>
</View>
"""
LOCAL_FILES = "/data/local-files/?d="
REGIONS = ("boxes", "masks")

_LABEL = "referred"
# Label Studio's run lengths: each run says in two bits which of these numbers of bits holds its length.
_LENGTH_BITS = (3, 4, 8, 16)
_VALUE_BITS = 8
_CHANNELS = 4


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and what was found in it.

    Attributes:
        file_name: as annotations shall name it, with forward slashes.
        size: `(height, width)` in pixels, the right way up.
        answers: of `ReferringExpressionPipeline`, one per phrase; None (nothing found) is left out.
    """

    file_name: str
    size: tuple[int, int]
    answers: Sequence[Mapping | None]


def labelled_picture(
    path: str | os.PathLike, answers: Mapping | Sequence[Mapping | None], folder: str | os.PathLike | None = None
) -> LabelledPicture:
    """A picture file with its answers.

    Args:
        path: of the picture.
        answers: what the pipeline returned for it, an answer or a list of them.
        folder: that annotations name pictures relative to; None keeps the path as it is.

    Raises:
        ValueError: if the file is no readable picture, or does not lie in `folder`.
    """
    name = Path(path) if folder is None else _relative(Path(path), Path(folder))
    # Decoded as for the model: whether the size in a file's header is the upright one differs between formats.
    picture = open_image(Path(path))
    size = (picture.height, picture.width)
    return LabelledPicture(name.as_posix(), size, [answers] if isinstance(answers, Mapping) else answers)


def _relative(path: Path, folder: Path) -> Path:
    # First with links as they are, since pictures of large sets are often links to some other place.
    for place in (os.path.abspath, os.path.realpath):
        if Path(place(path)).is_relative_to(place(folder)):
            return Path(place(path)).relative_to(place(folder))
    raise ValueError(f"The picture '{path}' does not lie in '{folder}'.")


# COCO -------------------------------------------------------------------------------------------------------------
def coco_dataset(pictures: Iterable[LabelledPicture]) -> dict:
    """The answers in COCO's object format.

    Each answer is an annotation with `bbox` (left, top, width, height in pixels), `area`, `score`, `phrase` and, if it
    has a mask, `segmentation` as uncompressed run lengths. Each phrase is a category too, so that annotation tools
    show it. Identifiers count from 1.
    """
    images, annotations = [], []
    categories: dict[str, int] = {}
    for number, picture in enumerate(pictures, start=1):
        height, width = picture.size
        images.append({"id": number, "file_name": picture.file_name, "height": height, "width": width})
        for answer in _given(picture):
            x0, y0, x1, y1 = answer["box"].values()
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": categories.setdefault(answer["label"], len(categories) + 1),
                "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "score": round(answer["score"], 6),
                "phrase": answer["label"],
            }
            if "mask" in answer:
                mask = _mask(answer["mask"], picture)
                annotation["segmentation"] = {"size": [height, width], "counts": _run_lengths(mask.T)}
                annotation["area"] = int(mask.sum())
            annotations.append(annotation)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()],
    }


def phrases_from_categories(dataset: Mapping) -> dict:
    """A COCO data set whose annotations without a `phrase` have got the name of their category as such.

    Raises:
        DatasetError: if an annotation has neither.
    """
    names = {category["id"]: category["name"] for category in dataset.get("categories", ())}
    annotations = []
    for annotation in dataset["annotations"]:
        phrase = annotation.get("phrase") or names.get(annotation.get("category_id"))
        if not phrase:
            raise DatasetError(f"The COCO annotation {annotation.get('id')} has neither a phrase nor a category.")
        annotations.append({**annotation, "phrase": phrase})
    return {**dataset, "annotations": annotations}


# Label Studio -----------------------------------------------------------------------------------------------------
def label_studio_tasks(
    pictures: Iterable[LabelledPicture],
    regions: str = "boxes",
    image_prefix: str = LOCAL_FILES,
    model_version: str = "oneref",
) -> list[dict]:
    """The answers as tasks to import into Label Studio, each picture with its predictions.

    Args:
        pictures: one task each.
        regions: what a person corrects: `"boxes"` or `"masks"`, which all answers must then have.
        image_prefix: what the address of a picture is before its file name. The default is that of a local storage
            whose root holds the pictures; use a web address where a server has them.
        model_version: shown beside the predictions.

    Raises:
        ValueError: if there is no such kind of region, or a mask is missing or not of its picture's size.
    """
    if regions not in REGIONS:
        raise ValueError(f"regions is one of {', '.join(REGIONS)}, not {regions!r}.")
    tasks = []
    for picture in pictures:
        results, scores = [], []
        for number, answer in enumerate(_given(picture), start=1):
            results += _regions(picture, answer, regions, f"region{number}")
            scores.append(answer["score"])
        prediction = {"model_version": model_version, "score": sum(scores) / max(len(scores), 1), "result": results}
        tasks.append({"data": {"image": image_prefix + quote(picture.file_name)}, "predictions": [prediction]})
    return tasks


def label_studio_rows(tasks: Iterable[Mapping], image_prefix: str = LOCAL_FILES) -> list[dict]:
    """Rows for JSON Lines of what Label Studio exported as JSON: one for each region of the newest annotation.

    Pictures without an annotation have not been looked at and give no rows.

    Args:
        tasks: of the export.
        image_prefix: what to take off the address of a picture, as in `label_studio_tasks`.

    Returns:
        dictionaries with `image`, `phrase`, `height`, `width` and `box` (x0, y0, x1, y1 in pixels) or, for brushed
        regions, `segmentation` as run lengths with its tight `box`.

    Raises:
        DatasetError: if a region has no phrase, or is neither an unrotated box nor a brushed mask.
    """
    rows = []
    for task in tasks:
        annotations = [entry for entry in task.get("annotations", ()) if not entry.get("was_cancelled")]
        if not annotations:
            continue
        image = unquote(task["data"]["image"].removeprefix(image_prefix))
        newest = max(annotations, key=lambda entry: entry.get("updated_at") or "")
        results = [result for result in newest["result"] if "id" in result]
        phrases = {
            result["id"]: " ".join(result["value"]["text"]) for result in results if result["type"] == "textarea"
        }
        for result in results:
            if result["type"] == "textarea":
                continue
            if not phrases.get(result["id"], "").strip():
                raise DatasetError(f"The region '{result['id']}' on '{image}' has no phrase; write one or delete it.")
            rows.append({"image": image, "phrase": phrases[result["id"]], **_region_row(result, image)})
    return rows


def _regions(picture: LabelledPicture, answer: Mapping, regions: str, name: str) -> Iterator[dict]:
    """The region of an answer, and its phrase, which belongs to it by having the same id."""
    height, width = picture.size
    shared = {
        "id": name,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": answer["score"],
    }
    if regions == "boxes":
        x0, y0, x1, y1 = answer["box"].values()
        place = {
            "x": 100 * x0 / width,
            "y": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
            "rotation": 0,
        }
        yield {
            **shared,
            "type": "rectanglelabels",
            "from_name": "box",
            "value": {**place, "rectanglelabels": [_LABEL]},
        }
    else:
        if "mask" not in answer:
            raise ValueError(f"'{answer['label']}' on '{picture.file_name}' has no mask; export regions='boxes'.")
        place = {"format": "rle", "rle": _packed(_mask(answer["mask"], picture))}
        yield {**shared, "type": "brushlabels", "from_name": "mask", "value": {**place, "brushlabels": [_LABEL]}}
    yield {**shared, "type": "textarea", "from_name": "phrase", "value": {**place, "text": [answer["label"]]}}


def _region_row(result: Mapping, image: str) -> dict:
    height, width = result["original_height"], result["original_width"]
    value = result["value"]
    if result["type"] == "rectanglelabels":
        if value.get("rotation"):
            raise DatasetError(
                f"The box '{result['id']}' on '{image}' is rotated by {value['rotation']:g} degrees; draw it upright."
            )
        x0, y0 = value["x"] * width / 100, value["y"] * height / 100
        box = [x0, y0, x0 + value["width"] * width / 100, y0 + value["height"] * height / 100]
        return {"box": [round(side, 2) for side in box], "height": height, "width": width}
    if result["type"] != "brushlabels":
        raise DatasetError(
            f"The region '{result['id']}' on '{image}' is of the type {result['type']}, not a box or mask."
        )
    mask = _unpacked(value["rle"], (height, width))
    if not mask.any():
        raise DatasetError(f"The brushed region '{result['id']}' on '{image}' is empty; delete it.")
    ys, xs = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return {
        "box": [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1],
        "segmentation": {"size": [height, width], "counts": _run_lengths(mask.T)},
        "height": height,
        "width": width,
    }


# Run lengths ------------------------------------------------------------------------------------------------------
def _run_lengths(values: np.ndarray) -> list[int]:
    """Lengths of the runs of a flattened boolean array, False first (perhaps none), as COCO counts them."""
    flat = np.concatenate([[False], values.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(changes, prepend=0, append=len(flat) - 1).tolist()


def _packed(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask `(height, width)`: the bytes of a stream of bits.

    The stream describes the mask as the values of an RGBA picture, row by row: 32 bits for their number, 5 for the
    bits of a value less one, four times 4 for `_LENGTH_BITS` less one; then for each run a 1, two bits that choose
    among these, the length less one, and the value.
    """
    bits = [f"{mask.size * _CHANNELS:032b}", f"{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    value = 0
    for length in _run_lengths(mask):
        length *= _CHANNELS
        while length:
            part = min(length, 1 << _LENGTH_BITS[-1])
            choice = next(index for index, size in enumerate(_LENGTH_BITS) if part <= 1 << size)
            bits.append(f"1{choice:02b}{part - 1:0{_LENGTH_BITS[choice]}b}{value:0{_VALUE_BITS}b}")
            length -= part
        value ^= 255
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def _unpacked(packed: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The boolean mask `(height, width)` of `_packed`, which may have runs of single values (a 0 in front) as well."""
    stream = "".join(f"{byte:08b}" for byte in packed)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        if position + count > len(stream):
            raise DatasetError("The run lengths of a brushed region are cut off.")
        position += count
        return int(stream[position - count : position], 2)

    number, value_bits = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if number != size[0] * size[1] * _CHANNELS:
        raise DatasetError(f"The run lengths of a brushed region are for {number // _CHANNELS} pixels, not {size}.")
    values = np.zeros(number, dtype=np.uint8)
    start = 0
    while start < number:
        repeated = read(1)
        stop = min(start + 1 + read(lengths[read(2)]), number)
        values[start:stop] = read(value_bits) if repeated else [read(value_bits) for _ in range(stop - start)]
        start = stop
    return values.reshape(*size, _CHANNELS)[..., -1] > 127


# Both -------------------------------------------------------------------------------------------------------------
def _given(picture: LabelledPicture) -> Iterator[Mapping]:
    return (answer for answer in picture.answers if answer is not None)


def _mask(mask, picture: LabelledPicture) -> np.ndarray:
    values = np.asarray(mask) > 0
    if values.shape != tuple(picture.size):
        raise ValueError(
            f"A mask on '{picture.file_name}' is {values.shape} (height, width), the picture {picture.size}."
        )
    return values


def write_json(path: str | os.PathLike, value) -> None:
    """JSON under a temporary name first, so that the file is never incomplete."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


__all__ = [
    "LABEL_STUDIO_CONFIG",
    "LOCAL_FILES",
    "REGIONS",
    "LabelledPicture",
    "coco_dataset",
    "label_studio_rows",
    "label_studio_tasks",
    "labelled_picture",
    "phrases_from_categories",
    "write_json",
]
