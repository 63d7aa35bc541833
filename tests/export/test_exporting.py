# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref export`: what it writes, what it compares, and what it refuses without leaving anything behind."""

import json
import sys

import pytest
import torch

from oneref_hf import OneRefConfig, OneRefForPreTraining, OneRefForSegmentation, cli
from oneref_hf.export import ExportError, OneRefExportedModel, torch_export
from oneref_hf.export.exporting import export_model
from oneref_hf.export.program import OneRefProgram
from oneref_hf.export.verification import Difference, box_agreement, largest_difference
from oneref_hf.modeling_oneref import OneRefGroundingOutput, region_contrast_score, tight_boxes
from oneref_hf.pipeline_oneref import AutoModelForReferringExpression


@pytest.fixture
def refused(models, tmp_path, capsys):
    """Returns a function that runs `oneref export`, which complains in one sentence and writes nothing."""

    def run(*options: str, model="grounding", format="onnx", output=None) -> str:
        output = tmp_path / "refused" / "here" if output is None else output
        before = sorted(tmp_path.rglob("*"))
        code = cli.main(["export", str(models / model), "--format", format, "--output", str(output), *options])
        stdout, stderr = capsys.readouterr()
        assert code == 1 and stdout == "" and stderr.startswith("oneref: ") and stderr.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return stderr

    return run


@pytest.fixture
def traced_before(program_model, monkeypatch):
    """Makes the format torch_export write the program that another test has traced already."""
    program = (program_model.folder / "model.pt2").read_bytes()
    monkeypatch.setattr(torch_export, "write", lambda _, folder: (folder / "model.pt2").write_bytes(program))


# What is written


def test_a_program_of_torch_export(program_model, golden_model, inputs):
    assert "largest difference" in program_model.stdout
    names = {path.name for path in program_model.folder.iterdir()}
    assert {"config.json", "model.pt2", "processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    model = golden_model(OneRefForSegmentation, trained_on_masks_only=True)
    exported = OneRefExportedModel.from_pretrained(program_model.folder, trust_remote_code=True)
    for batch in inputs.values():
        with torch.no_grad():
            expected = model(**batch)
        for name, answer in exported(**batch).items():
            torch.testing.assert_close(answer, expected[name], rtol=0, atol=1e-5, msg=name)


def test_the_record(program_model):
    config = json.loads((program_model.folder / "config.json").read_text())
    assert config["architectures"] == ["OneRefExportedModel"] and config["trained_on_masks_only"] is True
    assert list(config["auto_map"]) == ["AutoConfig"]
    record = config["export"]
    assert len(record.pop("sha256")) == 64 and record.pop("largest_difference") < 1e-5
    assert record == {
        "format": "torch_export",
        "task": "segmentation",
        "outputs": ["pred_boxes", "scores", "similarity_map", "pred_masks"],
        "dtype": "float32",
        "quantization": None,
        "box_iou": None,
        "torch": torch.__version__,
    }


def test_a_task_leaves_out_heads(export, tiny_sizes, inputs, models):
    exported = export("segmentation", "--format", "torch_export", "--task", "grounding", "--dtype", "bfloat16")
    model = OneRefExportedModel.from_pretrained(exported.folder, trust_remote_code=True)
    answers = model(**inputs["three"])
    assert type(answers) is OneRefGroundingOutput and list(answers) == ["pred_boxes", "scores", "similarity_map"]
    model = OneRefForSegmentation.from_pretrained(models / "segmentation", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        expected = model(**inputs["three"])
    for name, answer in answers.items():
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, expected[name].float(), rtol=0, atol=0.02, msg=name)
    assert exported.stdout.endswith(" MB; pred_boxes, scores, similarity_map)\n")

    pretraining = OneRefForPreTraining(OneRefConfig(**tiny_sizes, visual_vocab_size=64)).eval()
    program = OneRefProgram(pretraining)
    names = {name.split(".")[1] for name in program.state_dict()}
    assert program.task == "grounding" and names == {"oneref", "box_head"}, "none of the heads of pre-training"
    with torch.no_grad():
        boxes = pretraining(**inputs["three"]).pred_boxes
    assert torch.equal(program(**inputs["three"])[0], boxes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("masks", ["--format", "onnx"]),
        ("grounding", ["--format", "onnx", "--opset", "20", "--quantize", "int8"]),
        ("grounding", ["--format", "onnx", "--dtype", "float16"]),
        ("segmentation", ["--format", "aotinductor"]),
    ],
)
def test_every_other_export(export, models, inputs, model, options):
    exported = OneRefExportedModel.from_pretrained(export(model, *options).folder, trust_remote_code=True)
    answers = exported(**inputs["three"])
    tolerance = {"float16": 5e-3, "int8": 0.05}.get(options[-1], 1e-5)
    with torch.no_grad():
        expected = AutoModelForReferringExpression.from_pretrained(models / model)(**inputs["three"])
    assert len(answers) == (3 if model == "grounding" else 4)
    for name, answer in answers.items():
        torch.testing.assert_close(answer, expected[name], rtol=0, atol=tolerance, msg=name)


def test_an_earlier_export_is_replaced_on_request(export, models, tmp_path, capsys, traced_before, refused):
    output = tmp_path / "output"
    command = ["export", str(models / "masks"), "--format", "torch_export", "--output", str(output)]
    output.mkdir()  # an empty directory does not matter
    assert cli.main(command) == 0
    (output / "leftover").touch()
    capsys.readouterr()
    sentence = refused(model="masks", format="torch_export", output=output)
    assert "exists already; choose another output or overwrite it" in sentence
    assert cli.main([*command, "--overwrite"]) == 0
    assert not (output / "leftover").exists() and (output / "model.pt2").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


# What is compared


class Wrong:
    """Answers of a program, changed in one place."""

    def __init__(self, program: OneRefProgram, output: str, change):
        self.program, self.output, self.change, self.sizes = program, output, change, []

    def __call__(self, **inputs) -> dict[str, torch.Tensor]:
        names = ("pred_boxes", "scores", "similarity_map", "pred_masks")
        self.sizes.append((*inputs["input_ids"].shape, bool(inputs["attention_mask"].all())))
        answers = dict(zip(names, self.program(**inputs)))
        # The second row only, so that a single picture shows nothing.
        answers[self.output][1:2] = self.change(answers[self.output][1:2])
        return answers


@pytest.fixture(scope="module")
def program(golden_model):
    return OneRefProgram(golden_model(OneRefForSegmentation)).requires_grad_(False)


@pytest.mark.parametrize("output", ["pred_boxes", "scores", "similarity_map", "pred_masks"])
def test_a_wrong_answer_is_found(program, output):
    exported = Wrong(program, output, lambda answer: answer - 0.25)
    assert largest_difference(exported, program) == Difference(pytest.approx(0.25, abs=1e-5), output, 6)
    batch_sizes, text_lengths, complete = map(set, zip(*exported.sizes))
    assert len(batch_sizes) >= 3 and len(text_lengths) >= 4 and max(text_lengths) == 64 and complete == {True, False}


def test_no_number_is_found(program):
    with pytest.raises(ExportError, match="gave scores that are no numbers"):
        largest_difference(Wrong(program, "scores", lambda answer: answer * float("nan")), program)


def test_a_wrong_shape_is_found(program):
    def narrow(**inputs):
        answers = Wrong(program, "scores", lambda answer: answer)(**inputs)
        return {**answers, "pred_masks": answers["pred_masks"][:, :-1]}

    with pytest.raises(ExportError, match=r"pred_masks of shape \(1, 31, 32\) where \(1, 32, 32\) is right"):
        largest_difference(narrow, program)


class Verge:
    """A program that reads its box off a mask with a lonely pixel of the logit `value`, outside or just inside."""

    task, config = "segmentation", OneRefConfig(image_size=64, trained_on_masks_only=True)

    def __init__(self, value: float):
        self.value = value

    def __call__(self, pixel_mask, **inputs):
        masks = torch.full((len(pixel_mask), 32, 32), -0.5)
        masks[:, 12:20, 12:20], masks[:, 25, 25] = 0.5, self.value
        boxes = tight_boxes(masks, torch.zeros(len(masks), 4), pixel_mask)
        scores = region_contrast_score(masks, boxes, masks, pixel_mask)
        return boxes, scores, torch.zeros(len(masks), 4, 4), masks


def test_a_pixel_on_the_verge_of_a_mask_does_not_count():
    """It changes sides by rounding, and moves the box by more than any tolerance."""
    names = ("pred_boxes", "scores", "similarity_map", "pred_masks")
    outside, inside = Verge(-1e-6), Verge(1e-6)
    pixel_mask = torch.ones(1, 64, 64)
    assert (outside(pixel_mask)[0] - inside(pixel_mask)[0]).abs().max() > 0.05
    difference = largest_difference(lambda **inputs: dict(zip(names, inside(**inputs))), outside)
    assert difference.value == pytest.approx(2e-6, rel=0.01) and difference.output == "pred_masks"
    wrong = Wrong(inside, "pred_boxes", lambda boxes: boxes + 0.25)
    assert largest_difference(wrong, outside) == Difference(pytest.approx(0.25, abs=1e-5), "pred_boxes", 6)


def test_agreement_of_boxes(tiny_processor):
    phrases = []

    def program(input_ids, **inputs):
        return (torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(len(input_ids), 1),)

    def exported(input_ids, **inputs):
        phrases.extend(tuple(row.tolist()) for row in input_ids)
        boxes = program(input_ids)[0]
        boxes[:, 0] += 0.04  # a tenth of the width
        return OneRefGroundingOutput(pred_boxes=boxes)

    assert box_agreement(exported, program, tiny_processor, num_phrases=6) == pytest.approx(0.9 / 1.1, abs=1e-6)
    assert len(phrases) == 6 and len(set(phrases)) > 1
    beyond = torch.tensor([[1.0, 0.5, 0.4, 0.4]])  # half of it outside the canvas
    same = box_agreement(
        lambda **inputs: OneRefGroundingOutput(pred_boxes=beyond),
        lambda **inputs: (beyond,),
        tiny_processor,
        num_phrases=1,
    )
    assert same == 1


def test_a_program_that_differs_is_not_kept(traced_before, monkeypatch, refused):
    run = torch_export.Runner.__call__
    monkeypatch.setattr(torch_export.Runner, "__call__", lambda self, inputs: [x + 2e-4 for x in run(self, inputs)])
    sentence = refused(model="masks", format="torch_export")
    assert "differs from" in sentence and "more than the 1e-04 that rounding explains" in sentence


# What is refused


@pytest.mark.parametrize(
    ("model", "format", "options", "sentence"),
    [
        ("bare", "onnx", [], "holds a OneRefModel, which cannot say where a phrase is"),
        ("nowhere", "onnx", [], "There is no model directory"),
        ("grounding/config.json", "onnx", [], "is a file, but a model is a directory"),
        ("grounding", "onnx", ["--task", "segmentation"], "A OneRefForGrounding has no mask head"),
        (
            "masks",
            "onnx",
            ["--task", "grounding"],
            "takes its boxes from them, so it cannot be exported",
        ),
        ("grounding", "torch_export", ["--opset", "20"], "opset is for the format onnx, not for torch_export"),
        ("grounding", "aotinductor", ["--quantize", "int8"], "quantize is for the format onnx, not for aotinductor"),
        ("grounding", "onnx", ["--opset", "9"], "The opset lies between 18 and 23, so it cannot be 9"),
        (
            "grounding",
            "onnx",
            ["--quantize", "int8", "--dtype", "float16"],
            "from float32, not from float16",
        ),
        ("grounding", "onnx", ["--dtype", "bfloat16"], "ONNX Runtime has no bfloat16 on the CPU"),
    ],
)
def test_what_cannot_be_exported(refused, model, format, options, sentence):
    assert sentence in refused(*options, model=model, format=format)


def test_an_exported_model_is_not_exported_again(onnx_model, tmp_path):
    with pytest.raises(ExportError, match="is an exported model; export the one it was made of"):
        export_model(onnx_model.folder, tmp_path / "again", "onnx")


def test_another_directory_is_not_overwritten(refused, models):
    sentence = refused("--overwrite", output=models / "segmentation")
    assert "holds something else than an earlier export" in sentence


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages(refused, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"Writing ONNX needs the package {package}; install it with: pip install 'oneref-hf[export]'" in refused()


def test_without_a_compiler(refused, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "AOTInductor needs a C++ compiler" in refused(format="aotinductor")
