# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The image processors: parity with the original, every kind of input, labels, and post-processing."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import is_torchvision_available

from oneref_hf.image_processing_oneref import OneRefImageProcessor
from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from oneref_hf.letterbox_oneref import IMAGE_MEAN, IMAGE_STD


PICTURES = {
    "coffee_210x140": (96, 384),
    "astronaut_150x201": (96,),
    "chelsea_121x121": (96,),
    "rocket_63x40": (96,),
}
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))


# Where torchvision cannot be imported, torch's own resize, which torchvision calls, stands in for it.
@pytest.fixture(params=["pil", "torchvision" if is_torchvision_available() else "stand-in"])
def processor_class(request, monkeypatch):
    if request.param == "stand-in":
        backends = "transformers.image_processing_backends."
        monkeypatch.setattr("oneref_hf.image_processing_oneref.requires_backends", lambda *args: None)
        monkeypatch.setattr(backends + "tvF", StandIn, raising=False)
        monkeypatch.setattr(backends + "pil_torch_interpolation_mapping", {2: "bilinear"})
    return OneRefImageProcessorPil if request.param == "pil" else OneRefImageProcessor


class StandIn:
    InterpolationMode = SimpleNamespace(BILINEAR="bilinear", LANCZOS="lanczos")

    @staticmethod
    def resize(image, size, interpolation, antialias):
        return F.interpolate(image[None], size=size, mode=interpolation, antialias=antialias)[0]

    @staticmethod
    def normalize(image, mean, std, inplace):
        return (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.fixture
def processor(processor_class):
    return processor_class(size={"height": 96, "width": 96})


@pytest.fixture
def pil_processor():
    return OneRefImageProcessorPil(size={"height": 96, "width": 96})


@pytest.fixture
def coffee(fixtures_dir):
    return Image.open(fixtures_dir / "coffee_210x140.png").convert("RGB")


def pixels_of(processor, image, **kwargs) -> torch.Tensor:
    """What the processor makes of one picture, in grey levels `(3, S, S)`."""
    values = processor(image, return_tensors="pt", **kwargs).pixel_values
    return (values[0] * STD + MEAN) * 255


# Parity


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in PICTURES.items() for size in sizes])
def test_pixel_values_equal_the_original(processor_class, fixtures_dir, name, size):
    facts = json.loads((fixtures_dir / "preprocess.json").read_text())[f"{name}.{size}"]
    tensors = load_file(fixtures_dir / "preprocess.safetensors")
    processor = processor_class(size={"height": size, "width": size})
    batch = processor(
        str(fixtures_dir / f"{name}.png"),
        boxes=facts["image_box_xyxy"],
        masks=tensors[f"{name}.source_mask"],
        return_tensors="pt",
    )
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "pixel_values": ((1, 3, size, size), torch.float32),
        "pixel_mask": ((1, size, size), torch.int64),
        "box_labels": ((1, 4), torch.float32),
        "mask_labels": ((1, size, size), torch.uint8),
    }
    # PIL is what the original resizes with; torchvision's tensor resize may differ by two grey levels.
    tolerance = 1e-5 if processor_class is OneRefImageProcessorPil else 2 / 255 / STD.min().item()
    expected = tensors[f"{name}.{size}.pixel_values"]
    torch.testing.assert_close(batch.pixel_values[0], expected, atol=tolerance, rtol=0)
    picture = tensors[f"{name}.{size}.pixel_mask"].bool()
    assert torch.equal(batch.pixel_mask[0].bool(), picture)
    assert (batch.pixel_values[0][:, ~picture] == 0).all()
    assert torch.equal(batch.mask_labels, tensors[f"{name}.{size}.target_mask"])
    torch.testing.assert_close(batch.box_labels[0], torch.tensor(facts["target_box_cxcywh"]), atol=1e-7, rtol=0)


# Inputs


def test_every_form_of_the_same_picture_gives_the_same_pixels(processor, coffee, fixtures_dir):
    expected = pixels_of(processor, coffee)
    array = np.asarray(coffee)
    tensor = torch.from_numpy(array.copy())
    path = fixtures_dir / "coffee_210x140.png"
    same = {
        "path": path,
        "string": str(path),
        "list": [coffee],
        "nested list": [[coffee]],
        "HWC array": array,
        "CHW array": array.transpose(2, 0, 1),
        "HWC tensor": tensor,
        "CHW tensor": tensor.permute(2, 0, 1),
        "batch": array[None],
        "int64": array.astype(np.int64),
        "uint16": array.astype(np.uint16) * 257,
        "foreign byte order": (array.astype(np.uint16) * 257).astype(">u2"),
        "reversed twice": array[::-1].copy()[::-1],
        "opaque array": np.concatenate([array, np.full_like(array[..., :1], 255)], axis=-1),
    }
    for form, image in same.items():
        torch.testing.assert_close(pixels_of(processor, image), expected, msg=form)
    floats = {
        "float32 in [0, 1]": array.astype(np.float32) / 255,
        "float64 in [0, 1]": array / 255,
        "a little beyond [0, 1]": np.where(array == 255, 1.001, array / 255),
        "float16 tensor in [0, 1]": (tensor / 255).half().permute(2, 0, 1),
        "floats in [0, 255]": array.astype(np.float32),
    }
    for form, image in floats.items():  # not rounded to grey levels after resizing
        torch.testing.assert_close(pixels_of(processor, image), expected, atol=1.01, rtol=0, msg=form)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B", "F"]
)
def test_pil_modes(processor, coffee, mode):
    grey = coffee.convert("L")
    if mode.startswith("I"):
        deep = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32)).convert(mode)
        expected = grey
    elif mode == "F":
        image, expected = coffee.convert("F"), grey
    else:
        image = coffee.convert("P").convert("PA") if mode == "PA" else coffee.convert(mode)
        expected = image.convert("RGB")
    assert image.mode == mode
    tolerance = 1.01 if mode == "F" else 0.0  # floats are not rounded to grey levels
    torch.testing.assert_close(pixels_of(processor, image), pixels_of(processor, expected), atol=tolerance, rtol=0)


def test_a_mode_pil_cannot_convert_is_named(processor, coffee):
    with pytest.raises(ValueError, match=r"Image 0 of 1 .* decoded.*conversion from La"):
        processor(coffee.convert("LA").convert("La"))


def test_transparency_is_dropped_and_the_stored_colours_stay(processor, coffee, recwarn):
    expected = pixels_of(processor, coffee)
    rgba = coffee.copy()
    rgba.putalpha(0)
    torch.testing.assert_close(pixels_of(processor, rgba), expected)
    torch.testing.assert_close(pixels_of(processor, np.asarray(rgba)), expected)
    palette = coffee.convert("P")
    expected = pixels_of(processor, palette.convert("RGB"))
    palette.info["transparency"] = bytes([0] * 256)
    torch.testing.assert_close(pixels_of(processor, palette), expected)
    assert not [warning for warning in recwarn if "Transparency" in str(warning.message)]


def test_exif_orientation_turns_the_picture_before_anything_else(processor, coffee, tmp_path):
    lying = coffee.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back by 90 degrees clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "lying.png"
    lying.save(path, exif=exif)
    upright = processor(coffee, boxes=[10, 20, 110, 70], return_tensors="pt")
    for image in (path, Image.open(path)):
        batch = processor(image, boxes=[10, 20, 110, 70], return_tensors="pt")
        for key, value in upright.items():
            torch.testing.assert_close(batch[key], value)
    with pytest.raises(ValueError, match=r"Mask 0 is \(210, 140\).*but its picture is \(140, 210\)"):
        processor(path, masks=np.zeros((210, 140), bool))


@pytest.mark.parametrize(
    ("shape", "as_tensor", "channels_first"),
    [
        ((1, 1, 3), False, False),
        ((3, 1, 1), False, True),
        ((3, 50, 3), False, False),  # NumPy's habit
        ((3, 50, 3), True, True),  # torch's habit
        ((1, 50, 3), True, False),  # colour beats grey
        ((3, 50, 1), False, True),
        ((40, 3, 3), True, False),
    ],
)
def test_channels_are_found(pil_processor, shape, as_tensor, channels_first):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    hwc = array.transpose(1, 2, 0) if channels_first else array
    expected = pixels_of(pil_processor, Image.fromarray(np.ascontiguousarray(hwc)))
    torch.testing.assert_close(pixels_of(pil_processor, torch.from_numpy(array) if as_tensor else array), expected)
    layout = "channels_first" if channels_first else "channels_last"
    torch.testing.assert_close(pixels_of(pil_processor, array, input_data_format=layout), expected)


def test_a_wrong_layout_is_named(pil_processor, coffee):
    with pytest.raises(ValueError, match=r"1, 3 or 4 channels, not \(140, 210, 3\), channels_first"):
        pil_processor(np.asarray(coffee), input_data_format="channels_first")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (10000, 3), (3, 10000)])
def test_extreme_pictures(processor, height, width):
    batch = processor(np.full((height, width, 3), 200, np.uint8), return_tensors="pt")
    picture = batch.pixel_mask[0].bool()
    assert picture.any(0).sum() == (96 if width >= height else 1)
    assert picture.any(1).sum() == (96 if height >= width else 1)
    grey = (batch.pixel_values[0] * STD + MEAN)[:, picture] * 255
    torch.testing.assert_close(grey, torch.full_like(grey, 200))


def test_grey_arrays(pil_processor, coffee):
    grey = np.asarray(coffee.convert("L"))
    expected = pixels_of(pil_processor, coffee.convert("L"))
    for image in (grey, grey[None], grey[..., None], torch.from_numpy(grey.copy())):
        torch.testing.assert_close(pixels_of(pil_processor, image), expected)
    bilevel = grey > 127
    torch.testing.assert_close(pixels_of(pil_processor, bilevel), pixels_of(pil_processor, np.uint8(bilevel) * 255))


def test_rescaling_can_be_left_to_the_caller(pil_processor, coffee):
    array = np.asarray(coffee, dtype=np.float32) / 255
    expected = pil_processor(array, return_tensors="pt").pixel_values
    torch.testing.assert_close(pil_processor(array, do_rescale=False, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"the picture is empty, its shape is \(0, 5, 3\)"),
        (Image.new("RGB", (0, 5)), "the picture is empty"),
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (torch.full((3, 4, 4), torch.inf), "NaN or infinite"),
        (np.full((4, 4, 3), -2.0), r"lie in \[0, 1\] or \[0, 255\], not \[-2, -2\]; was it normalised already"),
        (np.full((4, 4, 3), 256.0), r"not \[256, 256\]"),
        (
            np.full((4, 4, 3), 300),
            r"int64 numbers must lie in 0..255, not 300..300; 16-bit pictures need the type uint16",
        ),
        (np.zeros((4, 4, 3), complex), "complex"),
        (np.zeros((5, 5, 2), np.uint8), r"1, 3 or 4 channels, not \(5, 5, 2\)"),
        (np.zeros(7, np.uint8), r"not \(7,\)"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "mode I must hold 16-bit numbers"),
    ],
)
def test_impossible_pictures_are_named(pil_processor, coffee, image, message):
    with pytest.raises(ValueError, match=f"^Image 1 of 2 cannot be used: .*{message}"):
        pil_processor([coffee, image])


def test_bad_files_are_named(pil_processor, fixtures_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image file '.*nowhere.jpg'"):
        pil_processor(tmp_path / "nowhere.jpg")
    whole = (fixtures_dir / "coffee_210x140.png").read_bytes()
    for name, content in {"cut.png": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}' is not a readable image, or is cut off"):
            pil_processor(tmp_path / name)
    with pytest.raises(ValueError, match="Image 0 of 1 cannot be used: the PIL image cannot be decoded"):
        pil_processor(Image.open(tmp_path / "cut.png"))
    with pytest.raises(ValueError, match="is not a readable image"):
        pil_processor(tmp_path)
    with pytest.raises(TypeError, match="not dict"):
        pil_processor([{}])
    with pytest.raises(ValueError, match="No picture was given"):
        pil_processor([])


def test_addresses(pil_processor, coffee, fixtures_dir, monkeypatch):
    expected = pixels_of(pil_processor, coffee)
    content = base64.b64encode((fixtures_dir / "coffee_210x140.png").read_bytes()).decode()
    torch.testing.assert_close(pixels_of(pil_processor, f"data:image/png;base64,{content}"), expected)
    with pytest.raises(ValueError, match="No picture could be read from 'data:image/png;base64,AAAA'"):
        pil_processor("data:image/png;base64,AAAA")
    web = {"https://example.org/coffee.png": coffee}
    monkeypatch.setattr("oneref_hf.letterbox_oneref.load_image", lambda address, timeout: web[address])
    torch.testing.assert_close(pixels_of(pil_processor, ["https://example.org/coffee.png"]), expected)
    with pytest.raises(ValueError, match=r"No picture could be read from 'https://example.org/tea.png'"):
        pil_processor("https://example.org/tea.png")


def test_options_that_would_leave_the_canvas_are_refused(pil_processor, coffee):
    with pytest.raises(ValueError, match=r"canvas is a square: .* not \{'height': 96, 'width': 128\}"):
        pil_processor(coffee, size={"height": 96, "width": 128})
    with pytest.raises(ValueError, match="square"):
        OneRefImageProcessorPil(size={"shortest_edge": 96})
    for option in ({"do_resize": False}, {"do_pad": False}, {"do_center_crop": True, "crop_size": 50}):
        with pytest.raises(ValueError, match="sees the whole picture"):
            pil_processor(coffee, **option)
    assert pil_processor(coffee, size=48, return_tensors="pt").pixel_values.shape == (1, 3, 48, 48)


# Labels and batches


def test_batches_of_pictures_of_different_sizes(processor, fixtures_dir):
    images = [Image.open(fixtures_dir / f"{name}.png") for name in PICTURES]
    boxes = [[1, 2, 30, 33]] * len(images)
    batch = processor(images, boxes=boxes, return_tensors="pt")
    assert batch.pixel_values.shape == (4, 3, 96, 96) and batch.box_labels.shape == (4, 4)
    for row, image in enumerate(images):
        alone = processor(image, boxes=boxes[row], return_tensors="pt")
        for key, value in alone.items():
            assert torch.equal(batch[key][row], value[0])


def test_one_picture_is_processed_once_for_all_its_phrases(pil_processor, coffee, monkeypatch):
    calls = []
    resize = OneRefImageProcessorPil.resize
    monkeypatch.setattr(
        OneRefImageProcessorPil, "resize", lambda self, *args: (calls.append(1), resize(self, *args))[1]
    )
    boxes = torch.tensor([[1, 2, 30, 33], [5, 5, 9, 9], [0, 0, 210, 140]])
    batch = pil_processor(coffee, boxes=boxes, return_tensors="pt")
    assert len(calls) == 1
    assert batch.pixel_values.shape == (3, 3, 96, 96) and batch.pixel_values.is_contiguous()
    torch.testing.assert_close(batch.box_labels[2], torch.tensor([0.5, 0.5, 1.0, 140 / 210]))
    batch = pil_processor([coffee, coffee.transpose(0)], phrases_per_image=[1, 2], return_tensors="pt")
    assert torch.equal(batch.pixel_values[1], batch.pixel_values[2])
    assert not torch.equal(batch.pixel_values[0], batch.pixel_values[1])


def test_boxes_are_truncated_like_the_annotations(pil_processor, coffee):
    exact = [10.9, 20.2, 110.7, 70.99]
    truncated = pil_processor(coffee, boxes=exact, return_tensors="pt").box_labels
    assert torch.equal(truncated, pil_processor(coffee, boxes=[10, 20, 110, 70], return_tensors="pt").box_labels)
    kept = pil_processor(coffee, boxes=exact, truncate_boxes=False, return_tensors="pt").box_labels[0]
    scale, top = 96 / 210, 16
    torch.testing.assert_close(kept[1].item(), ((20.2 + 70.99) / 2 * scale + top) / 96, atol=1e-6, rtol=0)
    assert OneRefImageProcessorPil(truncate_boxes=False).to_dict()["truncate_boxes"] is False


def test_every_form_of_the_same_mask(pil_processor, coffee):
    mask = np.zeros((140, 210), np.uint8)
    mask[30:90, 50:120] = 1
    expected = pil_processor(coffee, masks=mask, return_tensors="pt").mask_labels
    assert expected.sum() > 0
    forms = [
        mask.astype(bool),
        mask * 255,
        mask.astype(np.float32) * 0.6,
        mask[None],
        [mask],
        torch.from_numpy(mask),
        Image.fromarray(mask),
        Image.fromarray(mask * 255),
        Image.fromarray(mask * 255).convert("1"),
    ]
    for form in forms:
        assert torch.equal(pil_processor(coffee, masks=form, return_tensors="pt").mask_labels, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"boxes": [1, 2, 3]}, r"four numbers .* shape \(3,\)"),
        ({"boxes": [[1, 2, 3, 4], None]}, "four numbers .* this one is None"),
        (
            {"boxes": [[1, 2, 3, 4], [50, 20, 10, 5]]},
            r"Box 1 is \[50.0, 20.0, 10.0, 5.0\], but a box is \(x0, y0, x1, y1\)",
        ),
        ({"boxes": [float("nan"), 0, 1, 1]}, "Box 0"),
        (
            {"masks": np.zeros((140, 200), bool)},
            r"Mask 0 is \(140, 200\) \(height, width\), but its picture is \(140, 210\)",
        ),
        ({"masks": np.full((140, 210), 38, np.uint8)}, "label_map == label"),
        ({"masks": np.full((140, 210), 2.0)}, r"lies in \[0, 1\]"),
        ({"masks": Image.new("RGB", (210, 140))}, "one channel"),
        ({"masks": "mask.png"}, "A mask is"),
        (
            {"boxes": [[1, 2, 3, 4]] * 2, "masks": np.zeros((140, 210))},
            "There are 1 masks for 2 phrases on 1 pictures",
        ),
        ({"boxes": [[1, 2, 3, 4]], "phrases_per_image": [2]}, "There are 1 boxes for 2 phrases on 1 pictures"),
        ({"phrases_per_image": [1, 1]}, "phrases_per_image has 2 numbers for 1 pictures"),
    ],
)
def test_labels_that_do_not_fit_are_named(pil_processor, coffee, labels, message):
    with pytest.raises(ValueError, match=message):
        pil_processor(coffee, **labels)


def test_boxes_and_pictures_must_be_as_many(pil_processor, coffee):
    with pytest.raises(ValueError, match="There are 3 boxes for 2 phrases on 2 pictures"):
        pil_processor([coffee, coffee], boxes=[[1, 2, 3, 4]] * 3)


def test_arrays_are_returned_on_request(pil_processor, coffee):
    batch = pil_processor(coffee, boxes=[1, 2, 3, 4], return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in batch.values())
    assert isinstance(pil_processor(coffee)["pixel_values"][0], np.ndarray)


# Saving


def test_both_backends_share_one_saved_form(processor_class, tmp_path):
    processor = processor_class(size={"height": 96, "width": 96}, truncate_boxes=False)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == (
        "OneRefImageProcessor"
    )
    reloaded = OneRefImageProcessorPil.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    assert processor_class.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_without_torchvision_its_backend_says_so():
    with pytest.raises(ImportError, match="OneRefImageProcessor requires the Torchvision library"):
        OneRefImageProcessor()


# Post-processing


def outputs_of(boxes_cxcywh, scores=None, **others) -> dict:
    boxes = torch.tensor(boxes_cxcywh)
    return {
        "pred_boxes": boxes,
        "scores": torch.ones(len(boxes)) if scores is None else torch.tensor(scores),
        **others,
    }


@pytest.mark.parametrize("container", [dict, BaseModelOutput, lambda outputs: SimpleNamespace(**outputs)])
def test_boxes_come_back_in_pixels_of_the_picture(pil_processor, coffee, container):
    labels = pil_processor(coffee, boxes=[[42, 14, 147, 112], [0, 0, 210, 140]], return_tensors="pt").box_labels
    outputs = container(outputs_of(labels.tolist(), [0.7, 0.2]))
    for target_sizes in (
        [(140, 210)] * 2,
        torch.tensor([[140, 210]] * 2, dtype=torch.int32),
        [(140, 210)],
        (140, 210),
    ):
        results = pil_processor.post_process_object_detection(outputs, 0.5, target_sizes)
        assert [set(result) for result in results] == [{"scores", "labels", "boxes"}] * 2
        torch.testing.assert_close(results[0]["boxes"], torch.tensor([[42.0, 14.0, 147.0, 112.0]]))
        torch.testing.assert_close(results[0]["scores"], torch.tensor([0.7]))
        assert results[0]["labels"].tolist() == [0]
        assert [tuple(value.shape) for value in results[1].values()] == [(0,), (0,), (0, 4)]


def test_without_sizes_the_frame_is_the_canvas(pil_processor):
    outputs = outputs_of([[0.5, 0.5, 0.5, 2.0]], pred_masks=torch.ones(1, 48, 48))
    result = pil_processor.post_process_grounded_object_detection(outputs)[0]
    assert result["boxes"].tolist() == [[24.0, 0.0, 72.0, 96.0]]
    assert result["masks"].shape == (1, 96, 96) and result["masks"].all()
    assert result["text_labels"] is None


def test_grounded_results(pil_processor):
    """Two pictures of different shape; half-resolution logits are positive where the object is."""
    logits = torch.full((3, 48, 48), -1.0)
    logits[0, 20:28, 12:36] = 1.0
    logits[2, 12:36, 20:28] = 1.0
    boxes = [[0.5, 0.5, 0.5, 8 / 48], [0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 8 / 48, 0.5]]
    outputs = outputs_of(boxes, [0.9, 0.1, 0.8], pred_masks=logits.bfloat16())
    outputs = {name: value.bfloat16() for name, value in outputs.items()}
    sizes = [(300, 600), (300, 600), (600, 200)]
    results = pil_processor.post_process_grounded_object_detection(
        outputs, threshold=0.5, target_sizes=sizes, text_labels=[["wide", "nothing"], ["tall"]]
    )
    assert [result["text_labels"] for result in results] == [["wide"], [], ["tall"]]
    assert [tuple(result["masks"].shape) for result in results] == [(1, 300, 600), (0, 300, 600), (1, 600, 200)]
    for row in (0, 2):
        assert results[row]["masks"].dtype == torch.bool and results[row]["boxes"].dtype == torch.float32
        ys, xs = torch.where(results[row]["masks"][0])
        extent = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        # bfloat16 boxes and a half-resolution mask: a few picture pixels, 6.25 per canvas pixel
        torch.testing.assert_close(results[row]["boxes"][0], extent, atol=7, rtol=0)
    plain = pil_processor.post_process_grounded_object_detection(outputs_of(boxes), target_sizes=sizes)
    assert all("masks" not in result for result in plain)
    with pytest.raises(ValueError, match="2 text_labels for 3 predictions"):
        pil_processor.post_process_grounded_object_detection(outputs, text_labels=["a", "b"])


def test_masks_in_the_original_protocol(golden):
    """Binary masks on the canvas as the original's metric sees them: the IoU with its targets is the golden one."""
    processor = OneRefImageProcessorPil(size={"height": 32, "width": 32})
    masks = processor.post_process_masks({"pred_masks": golden["metrics.mask_logits"][:, 0]}, protocol="canvas")
    targets = golden["metrics.gt_masks"][:, 0].bool()
    masks = torch.stack(masks)
    assert masks.shape == targets.shape
    iou = (masks & targets).sum((1, 2)) / (masks | targets).sum((1, 2))
    torch.testing.assert_close(iou, golden["metrics.mask_iou"], atol=1e-6, rtol=0)


def test_masks_in_the_frame_of_the_picture(pil_processor):
    logits = torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0))
    sizes = [(50, 100), (100, 50)]
    masks = pil_processor.post_process_masks({"pred_masks": logits}, sizes)
    assert [tuple(mask.shape) for mask in masks] == sizes
    canvas = F.interpolate(logits[:, None], size=(96, 96), mode="bilinear", align_corners=False)
    for row, cut in enumerate((canvas[:1, :, 24:72], canvas[1:, :, :, 24:72])):
        expected = F.interpolate(cut, size=sizes[row], mode="bilinear", align_corners=False)[0, 0] > 0
        assert torch.equal(masks[row], expected)
    with pytest.raises(ValueError, match="protocol is 'picture' or 'canvas', not 'other'"):
        pil_processor.post_process_masks({"pred_masks": logits}, sizes, protocol="other")


def test_heat_maps(pil_processor):
    """A single similar patch of a 6 x 6 grid lights up its place in the picture."""
    maps = torch.full((1, 6, 6), -0.2)
    maps[0, 2, 4] = 0.8  # canvas rows 32..48, columns 64..80
    heat = pil_processor.post_process_similarity({"similarity_map": maps}, [(200, 400)])[0]
    assert heat.shape == (200, 400) and heat.dtype == torch.float32
    row, column = divmod(heat.argmax().item(), 400)
    # canvas (40, 72) is picture ((40 - 24) / 96 * 400, 72 / 96 * 400)
    assert abs(row - 66.7) < 4 and abs(column - 300) < 4
    assert heat.max() <= 0.8 and heat.min() >= -0.2


def test_post_processing_names_what_is_missing(pil_processor):
    outputs = outputs_of([[0.5, 0.5, 0.5, 0.5]] * 2)
    with pytest.raises(ValueError, match="no `pred_masks`"):
        pil_processor.post_process_masks(outputs)
    for sizes in ([(10, 10)] * 3, [(10, 10, 3)] * 2, torch.ones(2, 2, 2)):
        with pytest.raises(ValueError, match=r"one \(height, width\) for each of the 2 predictions"):
            pil_processor.post_process_object_detection(outputs, target_sizes=sizes)
