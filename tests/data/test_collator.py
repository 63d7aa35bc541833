# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Batches of training samples, and samples that are a function of seed, epoch and record."""

import io
import pickle
import struct

import pytest
import torch
import trainer_world as world
from PIL import Image
from torch.utils.data import DataLoader

from oneref_hf.data.collator import ReferringCollator
from oneref_hf.data.masking import referred_region
from oneref_hf.data.training import (
    EpochSampler,
    ReferringMasking,
    ReferringSamples,
    SampleKey,
    StreamedReferringSamples,
    UnusableSample,
)


AUGMENTATION = {"crop": True, "num_scales": 2, "translate": True, "color_jitter": 0.4}


def text(*ids, **more):
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int64), **more}


def test_texts_are_padded_and_everything_is_stacked():
    samples = [
        text(0, 7, 2, mlm_labels=torch.tensor([-100, 7, -100]), sample_id="a", box_labels=torch.ones(4)),
        text(
            0, 8, 9, 4, 2, mlm_labels=torch.tensor([-100, -100, 9, -100, 2]), sample_id="b", box_labels=torch.zeros(4)
        ),
    ]
    batch = ReferringCollator(pad_token_id=1)(samples)
    assert batch["input_ids"].tolist() == [[0, 7, 2, 1, 1], [0, 8, 9, 4, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["mlm_labels"].tolist() == [[-100, 7, -100, -100, -100], [-100, -100, 9, -100, 2]]
    assert batch["sample_ids"] == ["a", "b"] and batch["box_labels"].tolist() == [[1.0] * 4, [0.0] * 4]


def test_semantic_labels_have_two_positions_less_than_the_text():
    samples = [text(0, 7, 2, semantic_relation_labels=torch.tensor([0.5, 1.0, 0.0]))]
    batch = ReferringCollator(pad_to=8)(samples)
    assert batch["input_ids"].shape == (1, 8)
    assert batch["semantic_relation_labels"].tolist() == [[0.5, 1.0, 0.0, 0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="3 text positions, but the batch is padded to 2"):
        ReferringCollator(pad_to=2)(samples)


def test_samples_with_different_annotations_are_refused():
    with pytest.raises(ValueError, match="lack box_labels"):
        ReferringCollator()([text(0, 2), text(0, 2, box_labels=torch.ones(4))])


def test_the_order_of_an_epoch_depends_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0) and sorted(order(1, 0)) == list(range(50))
    assert order(1, 0) != order(1, 1) != order(2, 1)
    steps = EpochSampler(50, 1, multiple_of=8)
    assert len(steps) == 48 and list(steps) == order(1, 0)[:48]
    key = pickle.loads(pickle.dumps(order(1, 3)[0]))
    assert isinstance(key, SampleKey) and key.epoch == 3 and key == order(1, 3)[0]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items() if torch.is_tensor(value))


def test_samples_do_not_depend_on_workers_or_on_what_came_before():
    data = world.samples("mrefm", 6, augmentation=AUGMENTATION)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(6, seed=1)
        sampler.set_epoch(4)
        torch.manual_seed(workers)
        loader = DataLoader(data, 3, sampler=sampler, num_workers=workers, collate_fn=ReferringCollator(pad_to=16))
        batches.append(list(loader))
    assert all(same(one, other) for one, other in zip(*batches))
    again = data[SampleKey(2, 4)]
    assert same(again, data[SampleKey(2, 4)])
    assert not torch.equal(again["pixel_values"], data[SampleKey(2, 5)]["pixel_values"])
    assert not torch.equal(again["bool_masked_pos"], data[SampleKey(2, 6)]["bool_masked_pos"])


def test_pictures_with_damaged_exif_data_are_used_and_what_no_decoder_knows_is_named():
    """Both embedded: a photograph on its side whose unit of resolution is too large, and an unknown kind of DDS."""
    data = world.samples("rec", 2)
    expected, lying, rows = data[0]["pixel_values"], io.BytesIO(), data.records.to_list()
    exif = b"II*\0" + struct.pack("<IHHHIHHHHIII", 8, 2, 0x112, 3, 1, 6, 0, 0x128, 4, 1, 70000, 0)
    with Image.open(rows[0]["image"]["path"]) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(lying, format="PNG", exif=exif)
    texture = struct.pack("<4s4I56x2I4s40x", b"DDS ", 124, 0, 4, 4, 32, 4, b"ABCD")
    rows[0]["image"], rows[1]["image"] = ({"path": None, "bytes": value} for value in (lying.getvalue(), texture))
    data.records = type(data.records).from_list(rows, features=data.records.features)
    data.on_unreadable = "stop"
    assert torch.equal(data[0]["pixel_values"], expected)
    with pytest.raises(UnusableSample, match=r"^The record 'r1' cannot be used: The embedded image '' is not"):
        data[1]


@pytest.mark.parametrize("image_ratio", [None, 0.3])
@pytest.mark.parametrize("image_mask", ["referring", "random", "blockwise"])
def test_the_three_ways_of_masking(image_mask, image_ratio):
    """By how many patches they mask, around the box and in all, no two of them could stand in for each other."""
    from oneref_hf.data.text_masking import ReferringTextMasker

    masker = ReferringTextMasker(world.tokenizer())
    masking = ReferringMasking(masker, grid_size=16, image_mask=image_mask, image_ratio=image_ratio)
    data = ReferringSamples(world.records(4), world.processor(), masking=masking)
    sample, around, inside, everywhere = data[0], [], [], []
    for epoch in range(10):
        made = data[SampleKey(0, epoch)]
        mask = made["bool_masked_pos"]
        x0, y0, x1, y1 = referred_region(made["box_labels"], 16)
        around.append((x1 - x0) * (y1 - y0))
        inside.append(int(mask.view(16, 16)[y0:y1, x0:x1].sum()))
        everywhere.append(int(mask.sum()))
    assert sample["bool_masked_pos"].shape == (256,) and min(around) > 150
    if image_mask == "referring":
        assert inside == [size - int(size * 0.25) for size in around]
        assert len(set(everywhere)) > 1
    elif image_mask == "random":
        assert set(everywhere) == {256 - int(256 * (1 - (image_ratio or 0.75)))}
    else:
        target = int(256 * (image_ratio or 0.4))
        assert max(everywhere) <= target and sum(everywhere) / 10 > 0.9 * target
    assert sample["mlm_input_ids"].shape == sample["input_ids"].shape
    chosen = sample["mlm_labels"] != -100
    assert chosen.any() and torch.equal(sample["mlm_labels"][chosen], sample["input_ids"][chosen])


def test_words_found_by_the_parser_are_masked_first():
    data = world.samples("mrefm", 4)
    words = {"subject": [None] * 4, "object": [None] * 4}
    record = data.records[0]
    pieces = world.tokenizer().convert_ids_to_tokens(data[0]["input_ids"].tolist())
    place = next(index for index, piece in enumerate(pieces) if piece.startswith("▁") and len(piece) > 2)
    words["subject"][0] = pieces[place].removeprefix("▁")
    data.records = data.records.add_column("subject", words["subject"]).add_column("object", words["object"])
    assert record["id"] == "r0"
    assert all(data[SampleKey(0, epoch)]["mlm_labels"][place] != -100 for epoch in range(10))


def test_targets_fall_back_on_the_box():
    by_target = {target: world.samples("rec", 2) for target in ("segmentation", "box")}
    by_target["box"].make.target_masks = "box"
    areas = {t: [int(data[i]["mask_labels"].sum()) for i in range(2)] for t, data in by_target.items()}
    assert areas["segmentation"][0] == areas["box"][0]  # record 0 has no polygon
    assert areas["segmentation"][1] < areas["box"][1]


def test_what_is_missing_is_said():
    data = world.samples("rec", 2)
    data.make.semantic_relation, data.on_unreadable = True, "stop"
    rows = [{**row, "semantic_relation_labels": None} for row in data.records.to_list()]
    data.records = type(data.records).from_list(rows, features=data.records.features)
    with pytest.raises(UnusableSample, match=r"'r0' has no semantic_relation_labels; make them with"):
        data[0]
    with pytest.raises(ValueError, match="target_masks is one of None, box, segmentation, not 'polygon'"):
        ReferringSamples(data.records, world.processor(), target_masks="polygon")


def test_a_stream_is_split_over_processes_and_never_ends():
    records = world.records(6).to_iterable_dataset(num_shards=2)
    seen = []
    for rank in range(2):
        stream = iter(StreamedReferringSamples(records, world.processor(), rank=rank, world_size=2))
        seen.append([next(stream)["sample_id"] for _ in range(6)])
    epochs = [[sorted(ids[:3]), sorted(ids[3:])] for ids in seen]
    assert epochs[0][0] == epochs[0][1] and epochs[1][0] == epochs[1][1]
    assert sorted(epochs[0][0] + epochs[1][0]) == [f"r{index}" for index in range(6)]
