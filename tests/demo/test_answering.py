# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From an upload and phrases to what the page shows. Needs neither Gradio nor a browser."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from oneref_hf.data.rasterize import segmentation_to_mask
from oneref_hf.data.scenes import scene_sample
from oneref_hf.demo import answering
from oneref_hf.demo.answering import Problem, answer, read_phrases, read_upload
from oneref_hf.demo.examples import make_examples
from oneref_hf.visualization import draw_answers, draw_heatmap


PHRASES = ["the red cup", "the spoon"]


def decoded(address: str) -> Image.Image:
    kind, _, data = address.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def numbers(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def composed(shown: dict, kinds: set[str]) -> Image.Image:
    """What a browser makes of the layers of these kinds."""
    picture = decoded(shown["picture"]).convert("RGBA")
    for layer in shown["layers"]:
        if layer["kind"] in kinds:
            overlay = decoded(layer["src"])
            place = round(layer["left"] * picture.width / 100), round(layer["top"] * picture.height / 100)
            assert overlay.width == pytest.approx(layer["width"] * picture.width / 100)
            picture.alpha_composite(overlay, place)
    return picture.convert("RGB")


# Questions


def test_phrases_are_the_lines_that_hold_something():
    assert read_phrases("  the  red cup \n\n\t\nthe spoon\n") == ["the red cup", "the spoon"]


@pytest.mark.parametrize("text", [None, "", " \n\t\n"])
def test_no_phrase(text):
    with pytest.raises(Problem, match=r"no phrase yet.*one phrase per line"):
        read_phrases(text)


def test_too_many_or_too_long_phrases():
    assert len(read_phrases("a\n" * 10)) == 10
    with pytest.raises(Problem, match=r"11 phrases.*up to 10"):
        read_phrases("a\n" * 11)
    with pytest.raises(Problem, match=r"Phrase 2 has 501 characters.*up to 500"):
        read_phrases("a\n" + "b" * 501)


def test_a_picture_that_fits_is_taken_as_it_is(coffee):
    upload = read_upload(str(coffee))
    assert (upload.name, upload.size) == ("coffee_210x140.png", (140, 210))
    with Image.open(coffee) as picture:
        assert np.array_equal(numbers(upload.picture), numbers(picture.convert("RGB")))


@pytest.mark.parametrize(("mode", "ending"), [("RGB", "jpg"), ("P", "png"), ("I;16", "png"), ("RGB", "tiff")])
def test_a_large_picture_is_made_smaller_and_turned(mode, ending, tmp_path):
    path = tmp_path / f"large.{ending}"
    rows = np.linspace(0, 65535 if mode == "I;16" else 255, 1500)
    values = np.repeat(rows[:, None], 2000, axis=1).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values)
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # lies on its side: what was on top belongs to the right
    image.save(path, exif=exif)
    upload = read_upload(str(path))
    assert upload.size == (2000, 1500)
    assert upload.picture.size == (960, 1280) and upload.picture.mode == "RGB"
    shown = numbers(upload.picture)
    assert shown[:, :20].mean() > 245 and shown[:, -20:].mean() < 10


def test_no_picture():
    with pytest.raises(Problem, match="no picture yet"):
        read_upload(None)


def test_a_picture_that_is_gone(tmp_path):
    with pytest.raises(Problem, match=r"“gone\.png” is no longer here.*Choose it again"):
        read_upload(str(tmp_path / "gone.png"))


def test_broken_pictures(broken, tmp_path):
    text = tmp_path / "letter.png"
    text.write_text("no picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path in (broken, text, empty):
        with pytest.raises(Problem, match=rf"“{path.name}” cannot be read.*Try another"):
            read_upload(str(path))


def test_only_kinds_of_pictures_that_are_named_are_opened(tmp_path, monkeypatch):
    """Of the others, Pillow hands some to another program."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("it is run"))
    path = tmp_path / "scheme.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(Problem, match="cannot be read"):
        read_upload(str(path))


def test_large_pictures_are_refused_with_the_limit(many_pixels, coffee, monkeypatch):
    with pytest.raises(Problem, match=r"8000 × 6000 pixels.*20 MB and 40 megapixels"):
        read_upload(str(many_pixels))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses at twice that
    with pytest.raises(Problem, match=r"too large: .*40 megapixels"):
        read_upload(str(coffee))
    monkeypatch.setattr(answering, "MAX_MEGABYTES", 0.01)
    with pytest.raises(Problem, match=r"“coffee_210x140.png” is too large: .*20 MB"):
        read_upload(str(coffee))


# Answers


def test_the_layers_give_the_drawing(finder, coffee):
    shown = answer(finder, read_upload(str(coffee)), PHRASES)
    found = finder(str(coffee), PHRASES)
    everything = {"mask", "outline", "box", "label"}
    for kinds in (everything, {"box"}, {"mask", "outline"}):
        drawn = draw_answers(
            decoded(shown["picture"]), found, boxes="box" in kinds, masks="mask" in kinds, labels="label" in kinds
        )
        assert abs(numbers(composed(shown, kinds)) - numbers(drawn)).max() <= 3
        assert abs(numbers(drawn) - numbers(decoded(shown["picture"]))).max() > 50
    assert {layer["answer"] for layer in shown["layers"]} == {0, 1}


def test_numbers_and_heat_maps(finder, coffee):
    shown = answer(finder, read_upload(str(coffee)), PHRASES)
    found = finder(str(coffee), PHRASES, heatmap=True)
    assert (shown["name"], shown["height"], shown["width"]) == ("coffee_210x140.png", 140, 210)
    for one, expected in zip(shown["answers"], found, strict=True):
        assert one["phrase"] == expected["label"] and one["score"] == pytest.approx(expected["score"])
        assert one["box"] == pytest.approx(list(expected["box"].values()))
        assert (one["low"], one["high"]) == pytest.approx((expected["heatmap"].min(), expected["heatmap"].max()))
        heat = numbers(draw_heatmap(coffee, expected["heatmap"]))
        assert abs(numbers(decoded(one["heat"])) - heat).mean() < 3
    assert json.loads(json.dumps(shown)) == shown, "a browser gets it as JSON"


def test_a_model_without_masks(box_finder, coffee):
    shown = answer(box_finder, read_upload(str(coffee)), PHRASES)
    assert {layer["kind"] for layer in shown["layers"]} == {"box", "label"}
    assert all("segmentation" not in one for one in json.loads(shown["json"])["annotations"])


def test_boxes_and_masks_are_those_of_the_file(finder, coffee, tmp_path):
    """However much smaller the picture was made to be asked."""
    path = tmp_path / "large.png"
    with Image.open(coffee) as picture:
        picture.resize((2100, 1400)).save(path)
    upload = read_upload(str(path))
    assert upload.picture.size == (1280, 853)
    shown = answer(finder, upload, PHRASES)
    dataset = json.loads(shown["json"])
    assert [(image["file_name"], image["width"], image["height"]) for image in dataset["images"]] == [
        ("large.png", 2100, 1400)
    ]
    found = finder(upload.picture, PHRASES)
    for one, annotation, expected in zip(shown["answers"], dataset["annotations"], found, strict=True):
        box = [side * 2100 / 1280 for side in expected["box"].values()]
        assert one["box"] == pytest.approx(box, rel=1e-3, abs=0.01)
        assert annotation["phrase"] == one["phrase"] and annotation["score"] == pytest.approx(one["score"], abs=1e-6)
        assert annotation["bbox"][:2] == one["box"][:2]
        mask = segmentation_to_mask(annotation["segmentation"], (1400, 2100))
        expected_mask = numbers(expected["mask"].resize((2100, 1400), Image.Resampling.NEAREST)) > 0
        assert np.array_equal(mask > 0, expected_mask)


# Examples


def test_examples(tmp_path):
    examples = make_examples(tmp_path, photograph=True)
    assert [example.title for example in examples] == ["Photograph"] + ["Drawn scene"] * 4
    for example in examples:
        assert read_upload(str(example.path)) and read_phrases("\n".join(example.phrases)) == example.phrases
    assert examples[1].phrases[0] == scene_sample("test", 18).phrase
    assert "Photograph" not in [example.title for example in make_examples(tmp_path, photograph=False)]
