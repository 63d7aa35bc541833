# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported models behind the processor, the pipeline and the commands, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from oneref_hf import OneRefForSegmentation, OneRefProcessor, ReferringExpressionPipeline, cli
from oneref_hf.export import ExportError, OneRefExportedModel


PHRASES = ["the cup", "the spoon left of the red cup", "it", "the cup on the table"]


@pytest.fixture(scope="module")
def coffee(fixtures_dir) -> str:
    return str(fixtures_dir / "coffee_210x140.png")


def rewrite(folder, **changes):
    """Changes the record of the export in the configuration."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["export"].update(changes)
    path.write_text(json.dumps(config))


def assert_same_answers(answers, expected, same_masks: bool):
    for answer, other in zip(answers, expected, strict=True):
        assert list(answer) == list(other) and answer["label"] == other["label"]
        assert answer["score"] == pytest.approx(other["score"], abs=1e-5)
        assert list(answer["box"].values()) == pytest.approx(list(other["box"].values()), abs=0.011)
        if "heatmap" in other:
            assert np.allclose(answer["heatmap"], other["heatmap"], atol=1e-5)
        if same_masks:
            assert np.mean(np.asarray(answer["mask"]) != np.asarray(other["mask"])) < 1e-3


def test_in_the_pipeline(onnx_model, models, coffee):
    finder = pipeline("referring-expression", model=str(onnx_model.folder))
    assert type(finder.model) is OneRefExportedModel and finder.device.type == "cpu"
    other = pipeline("referring-expression", model=str(models / "segmentation"), device="cpu")
    for options in ({"heatmap": True}, {"mask": False}, {"max_tokens_per_forward": 30}):
        answers, expected = finder(coffee, PHRASES, **options), other(coffee, PHRASES, **options)
        assert_same_answers(answers, expected, same_masks="mask" not in options)
    several = [{"image": coffee, "text": PHRASES[:2]}, {"image": coffee, "text": PHRASES[2]}]
    for answers, expected in zip(finder(several, batch_size=2)[:1], other(several, batch_size=2)[:1], strict=True):
        assert_same_answers(answers, expected, same_masks=True)


def test_in_a_pipeline_made_by_hand(program_model, models, coffee):
    model = OneRefExportedModel.from_pretrained(program_model.folder, trust_remote_code=True)
    processor = OneRefProcessor.from_pretrained(program_model.folder)
    finder = ReferringExpressionPipeline(model=model, processor=processor)
    other = ReferringExpressionPipeline(
        model=OneRefForSegmentation.from_pretrained(models / "masks"), processor=processor, device="cpu"
    )
    assert_same_answers(finder(coffee, PHRASES), other(coffee, PHRASES), same_masks=True)
    assert_same_answers(finder(coffee, PHRASES, mask=False), other(coffee, PHRASES, mask=False), same_masks=False)
    assert repr(finder) == (
        "ReferringExpressionPipeline: {'model': 'OneRefExportedModel', 'dtype': 'float32', 'device': 'cpu', "
        "'input_modalities': ('image', 'text')}"
    )


def test_the_command_ground(onnx_model, models, coffee, capsys):
    tables = []
    for folder in (onnx_model.folder, models / "segmentation"):
        assert cli.main(["ground", coffee, *PHRASES, "--model", str(folder), "--json"]) == 0
        tables.append(json.loads(capsys.readouterr().out))
    for answer, expected in zip(*tables, strict=True):
        assert answer["phrase"] == expected["phrase"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert answer["box"] == pytest.approx(expected["box"], abs=0.011)


def test_code_runs_only_when_trusted(program_model, coffee, capsys):
    sentence = (
        r"holds a program of the format torch_export, and reading that runs code in it; .* trust_remote_code=True"
    )
    for load in (
        lambda: OneRefExportedModel.from_pretrained(program_model.folder),
        lambda: pipeline("referring-expression", model=str(program_model.folder)),
    ):
        with pytest.raises(ExportError, match=sentence):
            load()
    finder = pipeline("referring-expression", model=str(program_model.folder), trust_remote_code=True)
    assert finder(coffee, "the cup")["mask"].size == (210, 140)
    command = ["ground", coffee, "the cup", "--model", str(program_model.folder)]
    assert cli.main(command) == 1
    assert "--trust-remote-code" in capsys.readouterr().err
    assert cli.main([*command, "--trust-remote-code"]) == 0


def test_it_stays_on_the_cpu_and_in_its_format(onnx_model, coffee):
    model = OneRefExportedModel.from_pretrained(onnx_model.folder, dtype=torch.float32)
    assert model.to("cpu") is model and model.device.type == "cpu" and model.dtype == torch.float32
    with pytest.raises(ValueError, match="runs on the CPU and cannot be moved to cuda"):
        model.to("cuda")
    for dtype in ("bfloat16", torch.bfloat16):
        with pytest.raises(ExportError, match=r"was exported in float32, which cannot be changed to bfloat16"):
            OneRefExportedModel.from_pretrained(onnx_model.folder, dtype=dtype)
    with pytest.raises(TypeError, match="cannot be loaded with the argument 'quantization_config'"):
        OneRefExportedModel.from_pretrained(onnx_model.folder, quantization_config=None)


def test_shapes_that_do_not_fit(onnx_model, inputs):
    model = OneRefExportedModel.from_pretrained(onnx_model.folder)
    with pytest.raises(ValueError, match=r"\(1, 3, 96, 96\), but this model was exported for pictures of 64x64"):
        model(torch.zeros(1, 3, 96, 96), inputs["one"]["input_ids"])
    with pytest.raises(ValueError, match="3 phrases need as many of them"):
        model(inputs["one"]["pixel_values"], inputs["three"]["input_ids"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no exported model, for it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json' cannot be read: "),
        (lambda folder: (folder / "model.onnx").unlink(), r"lacks its model\.onnx"),
        (lambda folder: rewrite(folder, format="tflite"), "was exported as 'tflite' for 'segmentation', which this "),
        (lambda folder: rewrite(folder, task=None), "was exported as 'onnx' for None, which this version cannot run"),
    ],
)
def test_damaged_directories(onnx_model, copied, damage, sentence):
    folder = copied(onnx_model)
    damage(folder)
    with pytest.raises(ExportError, match=sentence):
        OneRefExportedModel.from_pretrained(folder)


def test_a_damaged_program(program_model, copied):
    folder = copied(program_model)
    (folder / "model.pt2").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ExportError, match=r"model\.pt2' cannot be read: "):
        OneRefExportedModel.from_pretrained(folder, trust_remote_code=True)


def test_other_directories(models, tmp_path):
    with pytest.raises(ExportError, match="holds a OneRefForGrounding that was not exported; `oneref export` makes"):
        OneRefExportedModel.from_pretrained(models / "grounding")
    with pytest.raises(ExportError, match="is a file, but an exported model is a directory"):
        OneRefExportedModel.from_pretrained(models / "grounding" / "config.json")
    with pytest.raises(ExportError, match=r"There is no directory '.*nowhere', and no such model on the Hub"):
        OneRefExportedModel.from_pretrained(tmp_path / "nowhere")
