# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""ONNX files: the model's answers, in float and with quantised weights."""

import json
import re
import sys
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch

from oneref_hf import OneRefForSegmentation
from oneref_hf.export import ExportError, OneRefExportedModel
from oneref_hf.export.onnx import quantize
from oneref_hf.loss_oneref import cxcywh_to_xyxy
from oneref_hf.metrics import box_iou
from oneref_hf.modeling_oneref import OneRefSegmentationOutput


OUTPUTS = ["pred_boxes", "scores", "similarity_map", "pred_masks"]


@pytest.fixture(scope="module")
def expected(golden_model, inputs):
    model = golden_model(OneRefForSegmentation)
    with torch.no_grad():
        return {name: model(**batch) for name, batch in inputs.items()}


def products(folder) -> dict[str, int]:
    """How many nodes of each kind multiply."""
    kinds = {"MatMul": "float", "Gemm": "float", "MatMulInteger": "int8", "MatMulNBits": "int4"}
    nodes = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    return Counter(kinds[node] for node in nodes if node in kinds)


@pytest.mark.parametrize("batch", ["one", "three"])
def test_the_answers_of_the_model(onnx_model, inputs, expected, batch):
    model = OneRefExportedModel.from_pretrained(onnx_model.folder)
    answers = model(**inputs[batch])
    assert type(answers) is OneRefSegmentationOutput and sorted(answers) == sorted(OUTPUTS)
    for name in OUTPUTS:
        assert answers[name].dtype == torch.float32
        torch.testing.assert_close(answers[name], expected[batch][name], rtol=0, atol=1e-5, msg=name)


def test_masks_are_optional_in_the_call(onnx_model, inputs, expected):
    """Nothing padded in the text, the canvas taken for picture."""
    model = OneRefExportedModel.from_pretrained(onnx_model.folder)
    batch = {name: inputs["one"][name] for name in ("pixel_values", "input_ids")}
    answers = model(**batch)
    torch.testing.assert_close(answers.pred_boxes, expected["one"].pred_boxes, rtol=0, atol=1e-5)
    everywhere = model(**batch, pixel_mask=torch.ones(1, 64, 64))
    assert torch.equal(answers.scores, everywhere.scores)
    assert not torch.equal(answers.scores, model(**inputs["one"]).scores), "the margin changes the score"
    assert sorted(model(**batch, predict_masks=False)) == sorted(OUTPUTS[:3])


def test_the_file_without_this_package(onnx_model, inputs, expected):
    session = onnxruntime.InferenceSession(onnx_model.folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert {entry.name: entry.shape for entry in session.get_inputs()} == {
        "pixel_values": ["batch", 3, 64, 64],
        "input_ids": ["batch", "text_length"],
        "attention_mask": ["batch", "text_length"],
        "pixel_mask": ["batch", 64, 64],
    }
    answers = session.run(None, {name: value.numpy() for name, value in inputs["three"].items()})
    for entry, answer in zip(session.get_outputs(), answers, strict=True):
        assert entry.shape[0] == "batch"
        torch.testing.assert_close(torch.from_numpy(answer), expected["three"][entry.name], rtol=0, atol=1e-5)


def test_what_the_command_says(onnx_model):
    compared, written = onnx_model.stdout.splitlines()
    pattern = r"compared with PyTorch: 6 batches, largest difference (\S+) \((\w+)\), allowed 1e-04"
    found = re.fullmatch(pattern, compared)
    record = json.loads((onnx_model.folder / "config.json").read_text())["export"]
    assert found[1] == f"{record['largest_difference']:.1e}" and float(found[1]) < 1e-5 and found[2] in OUTPUTS
    size = (onnx_model.folder / "model.onnx").stat().st_size
    assert written == f"written: {onnx_model.folder} ({size / 1e6:.1f} MB; {', '.join(OUTPUTS)})"


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.6), ("int4", 0.55)])  # a third of the file is no layer
def test_quantised_weights(onnx_model, copied, inputs, expected, kind, share):
    folder = copied(onnx_model)
    before = products(folder)
    quantize(folder, kind)
    weights_of_layers = 2 * 2 * 4  # layers, experts, products
    assert products(folder) == {"float": before["float"] - weights_of_layers, kind: weights_of_layers}
    sizes = [(place / "model.onnx").stat().st_size for place in (folder, onnx_model.folder)]
    assert sizes[0] < share * sizes[1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in onnx_model.folder.iterdir())

    answers = OneRefExportedModel.from_pretrained(folder)(**inputs["three"])
    corners = (cxcywh_to_xyxy(output.pred_boxes) for output in (answers, expected["three"]))
    overlap = box_iou(*corners, "xyxy")
    assert overlap.min() > (0.97 if kind == "int8" else 0.9)
    differences = (answers.similarity_map - expected["three"].similarity_map).abs()
    assert 1e-5 < differences.max() < (0.05 if kind == "int8" else 0.3)


def test_int8_does_not_overflow(onnx_model, copied, inputs, expected):
    """Without VNNI two products of 8 bits are added in 16: weights of 7 bits leave room for that."""
    folder = copied(onnx_model)
    quantize(folder, "int8")
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "model.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert len(weights) == 16 and max(abs(weight.astype(int)).max() for weight in weights) == 64


def test_without_onnx_runtime(onnx_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"needs ONNX Runtime; install it with: pip install 'oneref-hf\[export\]'$"):
        OneRefExportedModel.from_pretrained(onnx_model.folder)


def test_a_damaged_file(onnx_model, copied):
    folder = copied(onnx_model)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"^ONNX Runtime cannot use '.*model\.onnx': "):
        OneRefExportedModel.from_pretrained(folder)


def test_execution_providers_can_be_chosen(onnx_model, inputs):
    model = OneRefExportedModel.from_pretrained(onnx_model.folder, providers=("CPUExecutionProvider",))
    assert model(**inputs["one"]).pred_boxes.shape == (1, 4)
