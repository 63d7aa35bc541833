# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Models with weights quantised by torchao: saved, loaded, smaller, and close to the float model."""

import json
import sys

import pyarrow.parquet as pq
import pytest
import torch
from torchao.quantization import Int8Tensor
from transformers import pipeline

from oneref_hf import OneRefForPreTraining, OneRefForSegmentation, cli
from oneref_hf.export import ExportError, quantization_config
from oneref_hf.export.exporting import export_model
from oneref_hf.loss_oneref import cxcywh_to_xyxy
from oneref_hf.metrics import box_iou
from oneref_hf.prediction import model_fingerprint


OUTPUTS = ("pred_boxes", "scores", "similarity_map", "pred_masks")
KINDS = {"int8": 0.985, "int8-weights": 0.985, "int4-weights": 0.9}


@pytest.fixture(scope="module", params=KINDS)
def quantised(request, models, tmp_path_factory):
    """A kind, the model quantised while it is loaded, and the directory it is saved in."""
    folder = tmp_path_factory.mktemp(request.param)
    model = OneRefForSegmentation.from_pretrained(
        models / "segmentation", quantization_config=quantization_config(request.param)
    )
    model.save_pretrained(folder)
    return request.param, model, folder


def answers(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def test_what_was_saved_is_the_same(quantised, inputs):
    _, model, folder = quantised
    loaded = OneRefForSegmentation.from_pretrained(folder)
    weights, found = model.state_dict(), loaded.state_dict()
    assert weights.keys() == found.keys()
    for name, weight in weights.items():
        assert type(weight) is type(found[name]), name
        for part in getattr(weight, "tensor_data_names", ["data"]):
            assert torch.equal(getattr(weight, part), getattr(found[name], part)), f"{part} of {name}"
    expected, found = answers(model, inputs["three"]), answers(loaded, inputs["three"])
    for name in OUTPUTS:
        # Not to the bit: sums depend on how the weights lie in memory.
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=name)


def test_boxes_are_close_to_those_of_the_float_model(quantised, golden_model, inputs):
    kind, model, _ = quantised
    expected, found = answers(golden_model(OneRefForSegmentation), inputs["three"]), answers(model, inputs["three"])
    overlap = box_iou(*(cxcywh_to_xyxy(output.pred_boxes) for output in (found, expected)), "xyxy")
    assert overlap.min() > KINDS[kind]
    assert not torch.equal(found.similarity_map, expected.similarity_map)


def test_weights_shrink(quantised, models):
    _, _, folder = quantised
    before, after = (place / "model.safetensors" for place in (models / "segmentation", folder))
    # A byte instead of four for each weight of the layers, and some scales.
    weights = 2 * 2 * 12 * 128**2
    saved = before.stat().st_size - after.stat().st_size
    assert 0.85 * 3 * weights < saved <= 3 * weights


def test_a_quantised_directory_is_a_model_like_any_other(quantised, tiny_processor, fixtures_dir, tmp_path, capsys):
    _, _, folder = quantised
    tiny_processor.save_pretrained(folder)
    picture = fixtures_dir / "coffee_210x140.png"
    answer = pipeline("referring-expression", model=str(folder))(str(picture), "the cup")
    row = {"image": str(picture), "phrase": "the cup", "box": [10, 10, 90, 90], "split": "val"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    command = ["predict", "--model", str(folder), "--dataset", str(tmp_path / "val.jsonl"), "--split", "val"]
    assert cli.main([*command, "--output", str(tmp_path / "answers")]) == 0, capsys.readouterr().err
    [predicted] = pq.read_table(tmp_path / "answers" / "predictions-00000.parquet").to_pylist()
    assert predicted["box"] == pytest.approx(list(answer["box"].values()), abs=0.02)


def test_the_fingerprint_sees_quantised_weights(quantised, tiny_processor):
    _, _, folder = quantised
    first, second = (OneRefForSegmentation.from_pretrained(folder) for _ in range(2))
    assert model_fingerprint(first, tiny_processor) == model_fingerprint(second, tiny_processor)
    weight = second.oneref.beit3.layers[0].vision.fc1.weight
    getattr(weight, weight.__tensor_flatten__()[0][0]).view(-1)[0] += 1
    assert model_fingerprint(first, tiny_processor) != model_fingerprint(second, tiny_processor)


def test_only_the_layers_are_quantised(quantised):
    _, model, _ = quantised
    kinds = {
        name: type(module.weight) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    for name, kind in kinds.items():
        assert (kind is not torch.nn.Parameter) == ("beit3.layers." in name), name
    assert len([name for name in kinds if "beit3.layers." in name]) == 16 and len(kinds) == 16 + 2 + 4


def test_heads_of_pre_training_stay_in_float(golden_model, tiny_processor, tmp_path):
    golden_model(OneRefForPreTraining).save_pretrained(tmp_path)
    model = OneRefForPreTraining.from_pretrained(tmp_path, quantization_config=quantization_config("int8"))
    quantised = {
        name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), Int8Tensor)
    }
    assert len(quantised) == 16 and all("beit3.layers." in name for name in quantised)


def test_what_is_refused(models, quantised, tiny_processor, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"quantised as int8, int8-weights, int4-weights, not as 'int2'"):
        quantization_config("int2")
    _, _, folder = quantised
    tiny_processor.save_pretrained(folder)
    with pytest.raises(ExportError, match="has quantised weights; export the float model"):
        export_model(folder, tmp_path / "exported", "onnx")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ExportError, match=r"need torchao: pip install 'oneref-hf\[quantization\]'"):
        quantization_config("int8")
