# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor: pairing of pictures and phrases, text rules, saving, and the way back to pixels."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizer import build_tokenizer
from transformers import AutoProcessor

from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from oneref_hf.letterbox_oneref import IMAGE_STD
from oneref_hf.processing_oneref import OneRefProcessor


@pytest.fixture(scope="module", params=["tiny", "beit3_partial"])
def processor(request, fixtures_dir):
    """With and without a text normaliser."""
    return OneRefProcessor(
        OneRefImageProcessorPil(size={"height": 96, "width": 96}),
        build_tokenizer(fixtures_dir / f"{request.param}.spm"),
    )


@pytest.fixture(scope="module")
def pictures(fixtures_dir):
    return [Image.open(fixtures_dir / name) for name in ("coffee_210x140.png", "astronaut_150x201.png")]


def assert_same(batch, expected, pixel_tolerance=0.0):
    assert set(batch) == set(expected)
    for key, value in expected.items():
        tolerance = pixel_tolerance if key == "pixel_values" else 0.0
        torch.testing.assert_close(batch[key], value, atol=tolerance, rtol=0, msg=key)


# Pairing


def test_one_picture_with_many_phrases(processor, pictures):
    batch = processor(pictures[0], ["the cup", "a spoon on the left", "table"])
    assert list(batch) == ["pixel_values", "pixel_mask", "input_ids", "attention_mask"]
    assert set(batch) == set(processor.model_input_names)
    alone = processor(pictures[0], "a spoon on the left")
    assert alone.pixel_values.shape == (1, 3, 96, 96)
    for row in range(3):
        assert torch.equal(batch.pixel_values[row], alone.pixel_values[0])
        assert torch.equal(batch.pixel_mask[row], alone.pixel_mask[0])
    length = int(batch.attention_mask[1].sum())
    assert torch.equal(batch.input_ids[1, :length], alone.input_ids[0])
    assert batch.input_ids.shape[1] == batch.attention_mask.sum(1).max()  # padded to the longest
    assert all(value.is_contiguous() for value in batch.values())


def test_pictures_and_phrases_one_to_one_or_nested(processor, pictures):
    phrases = ["the cup", "a spoon", "her face"]
    boxes = [[1, 2, 50, 60], [5, 6, 70, 80], [9, 8, 100, 120]]
    masks = [np.zeros((140, 210)), np.ones((140, 210)), np.ones((201, 150))]
    expected = processor([pictures[0], pictures[0], pictures[1]], phrases, boxes=boxes, masks=masks)
    assert expected.box_labels.shape == (3, 4) and expected.mask_labels.shape == (3, 96, 96)
    nested_text = [phrases[:2], phrases[2:]]
    nested_boxes, nested_masks = [boxes[:2], boxes[2:]], [masks[:2], masks[2:]]
    assert_same(processor(pictures, nested_text, nested_boxes, nested_masks), expected)
    assert_same(processor(pictures, nested_text, boxes, masks), expected)
    assert_same(processor(pictures, [phrases[:2], phrases[2]], boxes, masks), expected)
    paths = [picture.filename for picture in pictures]
    assert_same(processor(paths, nested_text, torch.tensor(boxes), masks), expected)


def test_a_picture_need_not_be_repeated_for_each_of_its_phrases(processor, pictures):
    phrases = [["the cup", "a spoon on the left"], ["her face"]]
    repeated, once = processor(pictures, phrases), processor(pictures, phrases, repeat_images=False)
    assert set(once) == {*repeated, "image_indices"} and once.image_indices.tolist() == [0, 0, 1]
    assert once.pixel_values.shape == (2, 3, 96, 96)
    for name in ("pixel_values", "pixel_mask"):
        assert torch.equal(once[name][once.image_indices], repeated[name])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(once[name], repeated[name])
    one = processor(pictures[0], phrases[0], repeat_images=False)
    assert one.pixel_values.shape == (1, 3, 96, 96) and one.image_indices.tolist() == [0, 0]
    lists = processor(pictures[0], phrases[0], repeat_images=False, return_tensors=None)
    assert lists["image_indices"] == [0, 0]
    for arguments in (
        {"text": "a"},
        {"images": pictures},
        {"images": pictures[:1], "text": "a", "boxes": [1, 2, 3, 4]},
    ):
        with pytest.raises(ValueError, match="repeat_images=False is for images and text together"):
            processor(**arguments, repeat_images=False)


def test_text_or_pictures_alone(processor, pictures):
    phrases = ["the cup", "her face"]
    both = processor(pictures, phrases)
    text, images = processor(text=phrases), processor(pictures)
    assert set(text) == {"input_ids", "attention_mask"} and set(images) == {"pixel_values", "pixel_mask"}
    assert_same({**images, **text}, both)
    labels = processor(pictures, boxes=[[1, 2, 3, 4]] * 2, truncate_boxes=False)
    assert set(labels) == {"pixel_values", "pixel_mask", "box_labels"}


@pytest.mark.parametrize(
    ("num_images", "arguments", "message"),
    [
        (2, {"text": ["a", "b", "c"]}, "There are 3 phrases for 2 images"),
        (2, {"text": "a"}, "There are 1 phrases for 2 images"),
        (1, {"text": [["a"], ["b"]]}, "There are 2 lists of phrases for 1 images"),
        (2, {"text": [["a"], []]}, "no phrase for image 1"),
        (1, {"text": []}, "`text` has no phrase."),
        (1, {"text": ["a", 3]}, "phrase 1 is a int"),
        (1, {"text": ["a", ""]}, "Phrase 1 is empty"),
        (1, {"text": " \t\u3000"}, "Phrase 0 is empty: an empty phrase is an error"),
        (1, {"text": ["a", "b"], "boxes": [1, 2, 3, 4]}, "There are 1 boxes for 2 phrases on 1 pictures"),
        (0, {"text": "a", "boxes": [1, 2, 3, 4]}, "boxes and masks need the images"),
        (0, {}, "needs images, text or both"),
    ],
)
def test_what_does_not_match_is_named(processor, pictures, num_images, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(pictures[:num_images] or None, **arguments)


# Text


def test_ids_equal_the_original(processor, fixtures_dir):
    """Raw texts, since the processor lower-cases; except those with control tokens, which here are text."""
    name = "tiny" if len(processor.tokenizer) == 208 else "beit3_partial"
    rows = json.loads((fixtures_dir / "tokenization.json").read_text())["rows"]
    rows = [row for row in rows if row["text"].strip() and "<" not in row["text"]]
    assert len(rows) == 57
    for row in rows:
        assert processor(text=row["text"], return_tensors=None)["input_ids"] == [row[name]], row["text"]


def test_control_tokens_typed_by_a_user_are_text(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    reloaded = OneRefProcessor.from_pretrained(tmp_path)
    texts = [
        "<mask>",
        "the </s> cup",
        "<s><pad>",
        "a<unk>b",
        "<MASK>",
        "<<mask>mask>",
        "＜mask＞",
        "<ma\u00adsk>",
        "</ S>",
    ]
    for text in texts:
        for each in (processor, reloaded):
            ids = each(text=text).input_ids[0].tolist()
            tokenizer = each.tokenizer
            controls = {
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
                tokenizer.mask_token_id,
            }
            assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
            assert not controls & set(ids[1:-1]), text
    for token, spelled in {"<mask>": "< mask>", "</s>": "< /s>", "<unk>": "< unk>"}.items():
        assert_same(processor(text=f"a {token} b"), processor(text=f"a {spelled} b"))


def test_long_phrases_are_cut_with_one_warning(processor, caplog):
    logging.Logger.warning_once.cache_clear()  # transformers' own method, which remembers what it said
    for _ in range(2):
        batch = processor(text=["word " * 500, "short"])
    assert batch.input_ids.shape == (2, 64)
    assert batch.input_ids[0, 0] == 0 and batch.input_ids[0, -1] == 2 and batch.attention_mask[0].all()
    assert sum("cut off after 64 tokens" in record.message for record in caplog.records) == 1


def test_the_length_of_phrases_is_saved(processor, tmp_path):
    limit = processor.tokenizer.model_max_length
    try:
        for length, expected in ((20, 20), (100, 100), (10**30, 64)):
            processor.tokenizer.model_max_length = length
            processor.save_pretrained(tmp_path)
            for one in (processor, OneRefProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
                assert one(text="word " * 500).input_ids.shape == (1, expected)
    finally:
        processor.tokenizer.model_max_length = limit


def test_padding_can_be_fixed(processor):
    short = processor(text="a cup", padding="max_length")
    assert short.input_ids.shape == short.attention_mask.shape == (1, 64)
    length = int(short.attention_mask.sum())
    assert (short.input_ids[0, length:] == 1).all()
    assert processor(text="a cup").input_ids.shape == (1, length)
    rounded = processor(text=["a cup", "a cup " * 8], pad_to_multiple_of=16)
    assert (
        rounded.input_ids.shape == (2, 32) and processor(text="a cup", pad_to_multiple_of=16).input_ids.shape[1] == 16
    )
    assert int(rounded.attention_mask[0].sum()) == length
    nested = processor(text="a cup", text_kwargs={"padding": "max_length", "max_length": 16})
    assert nested.input_ids.shape == (1, 16)


# Saving


def test_round_trip(processor, pictures, tmp_path):
    arguments = {"images": pictures, "text": ["the cup", "her face " * 60], "boxes": [[1.5, 2, 50, 60]] * 2}
    before = processor(**arguments)
    processor(text="a cup", padding="max_length", max_length=16)  # must not be saved
    processor.save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}  # the code goes along for the Hub
    assert saved == {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    for loader in (OneRefProcessor, AutoProcessor):
        reloaded = loader.from_pretrained(tmp_path)
        assert type(reloaded) is OneRefProcessor and type(reloaded.tokenizer) is type(processor.tokenizer)
        # Where torchvision is installed, its backend is what is loaded: up to two grey levels away.
        same_backend = type(reloaded.image_processor) is type(processor.image_processor)
        tolerance = 0.0 if same_backend else 2 / 255 / min(IMAGE_STD)
        assert_same(reloaded(**arguments), before, tolerance)
        assert reloaded(text="a cup").input_ids.shape[1] < 64


# The way back


def test_predictions_become_pixels_of_the_picture(processor, pictures):
    boxes = [[42, 14, 147, 112], [30, 20, 105, 161]]
    batch = processor(pictures, ["the cup", "her face"], boxes=boxes)
    logits = torch.full((2, 48, 48), 3.0)
    outputs = {
        "scores": torch.tensor([0.9, 0.4]),
        "pred_boxes": batch.box_labels,
        "pred_masks": logits,
        "similarity_map": torch.ones(2, 6, 6),
    }
    sizes = [(picture.height, picture.width) for picture in pictures]
    results = processor.post_process_grounded_object_detection(
        outputs, threshold=0.5, target_sizes=sizes, text_labels=["the cup", "her face"]
    )
    torch.testing.assert_close(results[0]["boxes"], torch.tensor(boxes[:1], dtype=torch.float32))
    assert results[0]["text_labels"] == ["the cup"] and results[1]["text_labels"] == []
    assert results[0]["masks"].shape == (1, 140, 210) and results[1]["masks"].shape == (0, 201, 150)
    assert [tuple(mask.shape) for mask in processor.post_process_masks(outputs, sizes)] == sizes
    assert processor.post_process_masks(outputs, protocol="canvas")[0].shape == (96, 96)
    assert [tuple(heat.shape) for heat in processor.post_process_similarity(outputs, sizes)] == sizes
