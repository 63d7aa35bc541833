# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What was converted comes back in the original's format, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from convert_oneref import Options, convert
from export_original import main
from sources import Source


@pytest.mark.parametrize(
    ("kind", "task", "absent"),
    [
        ("beit3", "backbone", ()),
        ("rec", "grounding", ()),
        ("res", "segmentation", ()),
        ("mrefm", "pretraining", ("seg_conv", "bn")),
    ],
)
@pytest.mark.parametrize("max_shard_size", [10**9, 300_000])
def test_round_trip(tmp_path, original_checkpoint, kind, task, absent, max_shard_size):
    from conftest import load_original

    directory, back = tmp_path / "converted", tmp_path / "back.pth"
    convert(Source(original_checkpoint(kind)), directory, None, Options(max_shard_size=max_shard_size))
    assert main([str(directory), str(back)]) == 0

    expected = load_original(original_checkpoint(kind))["model"]
    exported = torch.load(back, weights_only=True)
    used = {name for name in expected if not name.startswith(("text_proj", *absent))}
    assert set(exported["model"]) - {"text_proj.weight", "text_proj.bias"} == used
    for name in used:
        assert exported["model"][name].dtype == expected[name].dtype
        assert torch.equal(exported["model"][name], expected[name]), name
    if kind != "beit3":
        # A strict load of the original wants this module, though it never uses it.
        assert exported["model"]["text_proj.weight"].shape == expected["text_proj.weight"].shape
    assert exported["epoch"] == {"mrefm": 99, "rec": 19, "res": 19, "beit3": 0}[kind]
    # Nothing shares storage: each tensor could be trained on.
    pointers = [tensor.untyped_storage().data_ptr() for tensor in exported["model"].values()]
    assert len(set(pointers)) == len(pointers)


@pytest.fixture
def converted(tmp_path, original_checkpoint) -> Path:
    convert(Source(original_checkpoint("rec")), tmp_path / "converted", None)
    return tmp_path / "converted"


def test_exported_files_convert_again(tmp_path, converted):
    assert main([str(converted), str(tmp_path / "back.pth")]) == 0
    convert(Source(tmp_path / "back.pth"), tmp_path / "again", None)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (converted, tmp_path / "again"))
    assert first == second


def no_config(directory: Path):
    (directory / "config.json").unlink()


def other_model(directory: Path):
    (directory / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')


def no_weights(directory: Path):
    (directory / "model.safetensors").unlink()


def other_head(directory: Path):
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace("OneRefForGrounding", "OneRefForSegmentation"))


def truncated(directory: Path):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is not a model directory"),
        (no_config, "is not a model directory"),
        (other_model, "holds a BertModel"),
        (no_weights, "cannot be read"),
        (truncated, "cannot be read"),
        (other_head, "mask_head.convs.0.weight"),
    ],
)
def test_directories_that_are_no_such_model(tmp_path, converted, capsys, spoil, message):
    spoil(converted)
    before = sorted(tmp_path.iterdir())
    assert main([str(converted), str(tmp_path / "back.pth")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_existing_files_are_kept(tmp_path, converted, capsys):
    back = tmp_path / "back.pth"
    back.write_text("precious")
    assert main([str(converted), str(back)]) == 1
    assert "--overwrite" in capsys.readouterr().err and back.read_text() == "precious"
    assert main([str(converted), str(back), "--overwrite"]) == 0
    assert torch.load(back, weights_only=True)["model"]
