# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers finds our classes, with the package installed and, through the code that is saved along, without it."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

import oneref_hf
from oneref_hf import (
    Beit3Config,
    Beit3Model,
    OneRefForGrounding,
    OneRefForPreTraining,
    OneRefForSegmentation,
    OneRefImageProcessorPil,
    OneRefModel,
    OneRefProcessor,
    VqkdConfig,
    VqkdModel,
)


@pytest.fixture(scope="module")
def saved(golden_model, tiny_processor, tmp_path_factory):
    """A complete directory of the segmentation model: weights, processor, tokenizer and code."""
    directory = tmp_path_factory.mktemp("segmentation")
    golden_model(OneRefForSegmentation).save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    return directory


def run_python(program: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_import_is_light():
    program = """
import sys, oneref_hf
heavy = {"torch", "transformers", "torchvision", "spacy", "datasets", "gradio", "accelerate", "evaluate"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python(program).strip() == "[]"


def test_models_and_processors_need_neither_torchvision_nor_the_training_stack():
    program = """
import sys, oneref_hf
from oneref_hf import OneRefForSegmentation, OneRefImageProcessorPil, OneRefProcessor, ReferringExpressionPipeline
from transformers import AutoModel, AutoProcessor
print(sorted({"torchvision", "spacy", "datasets", "gradio", "evaluate", "pycocotools"} & set(sys.modules)))
"""
    assert run_python(program).strip() == "[]"


def test_everything_public_can_be_imported():
    assert (oneref_hf.SMALL_MODEL / "config.json").is_file()
    for name in set(oneref_hf.__all__) - {"SMALL_MODEL"}:
        assert getattr(oneref_hf, name).__name__ == name
    assert set(oneref_hf.__all__) <= set(dir(oneref_hf))
    with pytest.raises(AttributeError, match="no attribute 'OneRefForCaptioning'"):
        _ = oneref_hf.OneRefForCaptioning


@pytest.mark.parametrize("config_class", [Beit3Config, oneref_hf.OneRefConfig, VqkdConfig])
def test_configurations_are_registered(config_class, tmp_path):
    config_class(num_hidden_layers=3).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is config_class and config.num_hidden_layers == 3


def test_each_auto_class_gives_its_model(saved):
    for auto_class, model_class in {
        "AutoModel": OneRefModel,
        "AutoModelForMaskGeneration": OneRefForSegmentation,
        "AutoModelForPreTraining": OneRefForPreTraining,
        "AutoModelForZeroShotObjectDetection": OneRefForGrounding,
    }.items():
        assert type(getattr(transformers, auto_class).from_pretrained(saved)) is model_class
    assert type(AutoProcessor.from_pretrained(saved)) is OneRefProcessor
    assert type(AutoImageProcessor.from_pretrained(saved, backend="pil")) is OneRefImageProcessorPil
    assert len(AutoTokenizer.from_pretrained(saved)) == 208


@pytest.mark.parametrize("model_class", [Beit3Model, VqkdModel])
def test_auto_model_knows_the_other_models(model_class, tmp_path):
    config = model_class.config_class(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model_class(config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is model_class


def test_the_stock_detection_pipeline_answers_every_label(saved, fixtures_dir):
    finder = pipeline("zero-shot-object-detection", model=str(saved))
    image = fixtures_dir / "coffee_210x140.png"
    labels = ["red cup", "a spoon", "the table"]
    answers = finder(str(image), candidate_labels=labels)
    assert sorted(answer["label"] for answer in answers) == sorted(labels)
    own = pipeline("referring-expression", model=str(saved))(str(image), labels)
    for answer in own:
        stock = next(other for other in answers if other["label"] == answer["label"])
        assert stock["score"] == pytest.approx(answer["score"], abs=1e-5)
        for side, value in answer["box"].items():
            assert stock["box"][side] == pytest.approx(value, abs=1)  # the stock pipeline cuts to whole pixels


REMOTE_CODE_PROGRAM = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "oneref_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
from PIL import Image
from transformers import AutoModel, AutoModelForMaskGeneration, AutoProcessor

directory, picture, again = sys.argv[1:]
image = Image.open(picture)

def answer(directory):
    model = AutoModelForMaskGeneration.from_pretrained(directory, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    outputs = model(**processor(image, "red cup"))
    result = processor.post_process_grounded_object_detection(outputs, target_sizes=[(image.height, image.width)])[0]
    return model, processor, {"box": result["boxes"][0].tolist(), "pixels": int(result["masks"].sum())}

model, processor, first = answer(directory)
base = AutoModel.from_pretrained(directory, trust_remote_code=True)
model.save_pretrained(again)
processor.save_pretrained(again)
facts = {"base": type(base).__name__, "module": type(model).__module__}
print(json.dumps({"first": first, "again": answer(again)[2], **facts}))
"""


def test_a_saved_directory_works_where_the_package_is_not_installed(saved, fixtures_dir, tmp_path):
    picture = fixtures_dir / "coffee_210x140.png"
    output = run_python(
        REMOTE_CODE_PROGRAM,
        str(saved),
        str(picture),
        str(tmp_path / "again"),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    found = json.loads(output.splitlines()[-1])
    assert found["module"].startswith("transformers_modules.") and found["base"] == "OneRefModel"

    model, processor = OneRefForSegmentation.from_pretrained(saved), OneRefProcessor.from_pretrained(saved)
    with Image.open(picture) as image, torch.no_grad():
        outputs = model(**processor(image, "red cup"))
        expected = processor.post_process_grounded_object_detection(outputs, target_sizes=[(140, 210)])[0]
    for answer in (found["first"], found["again"]):
        assert answer["box"] == pytest.approx(expected["boxes"][0].tolist(), abs=1e-3)
        assert answer["pixels"] == pytest.approx(int(expected["masks"].sum()), abs=5)


def test_weights_map_onto_a_device(saved):
    model = OneRefForSegmentation.from_pretrained(saved, device_map={"": "cpu"}, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    dispatched = OneRefForSegmentation.from_pretrained(saved, device_map="auto", max_memory={"cpu": "10GB"})
    assert {parameter.device.type for parameter in dispatched.parameters()} == {"cpu"}
