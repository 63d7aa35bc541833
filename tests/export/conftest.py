# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""A tiny model with the golden weights, and what `oneref export` makes of it."""

import contextlib
import io
import shutil
from typing import NamedTuple

import pytest
from PIL import Image

from oneref_hf import OneRefForGrounding, OneRefForSegmentation, OneRefModel, cli


PHRASES = ["the cup", "the spoon left of the red cup", "it"]


class Exported(NamedTuple):
    """The directory of an exported model, and what the command printed."""

    folder: object
    stdout: str


@pytest.fixture(scope="session")
def models(golden_model, tiny_processor, tmp_path_factory):
    """Directories of models: two that segment, one of them trained on masks alone, one for boxes, one for neither."""
    folder = tmp_path_factory.mktemp("models")
    saved = {
        "segmentation": golden_model(OneRefForSegmentation),
        "masks": golden_model(OneRefForSegmentation, trained_on_masks_only=True),
        "grounding": golden_model(OneRefForGrounding),
        "bare": golden_model(OneRefForGrounding).oneref,
    }
    assert isinstance(saved["bare"], OneRefModel)
    for name, model in saved.items():
        model.save_pretrained(folder / name)
        tiny_processor.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def export(models, tmp_path_factory):
    """Returns a function that runs `oneref export` and fails with what it complains of."""

    def run(model: str, *options: str) -> Exported:
        folder = tmp_path_factory.mktemp("exported") / "model"
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = cli.main(["export", str(models / model), "--output", str(folder), *options])
        assert code == 0, stderr.getvalue()
        return Exported(folder, stdout.getvalue())

    return run


@pytest.fixture(scope="session")
def onnx_model(export):
    return export("segmentation", "--format", "onnx")


@pytest.fixture(scope="session")
def program_model(export):
    """As a program of `torch.export`."""
    return export("masks", "--format", "torch_export")


@pytest.fixture
def copied(tmp_path):
    """Returns a function that copies the directory of an exported model."""

    def copy(exported: Exported):
        return shutil.copytree(exported.folder, tmp_path / "copy")

    return copy


@pytest.fixture(scope="session")
def inputs(tiny_processor, fixtures_dir):
    """Three pictures with phrases of different lengths, so with padding in both, and the first of them alone."""
    names = ("coffee_210x140.png", "astronaut_150x201.png", "rocket_63x40.png")
    pictures = [Image.open(fixtures_dir / name) for name in names]
    three, one = tiny_processor(pictures, PHRASES), tiny_processor(pictures[0], PHRASES[0])
    assert not three["attention_mask"].all() and not three["pixel_mask"].all() and one["attention_mask"].all()
    return {"three": dict(three), "one": dict(one)}
