# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Every script of examples/ runs as it is, with a tiny model in place of the shipped one, and leaves what it says."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneref_hf import OneRefForSegmentation, cli
from oneref_hf.data import load_referring_dataset


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(golden_model, tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    golden_model(OneRefForSegmentation).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, monkeypatch, tmp_path):
    """Returns a function that runs an example in an empty folder and gives its names and its output folder.

    `smaller` replaces lines that say how much work there is.
    """
    monkeypatch.setattr(cli, "default_model", lambda: str(model))
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, smaller: dict[str, str] | None = None):
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        for line, replacement in (smaller or {}).items():
            assert text.count(f"\n{line}\n") == 1
            text = text.replace(line, replacement)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        names = runpy.run_path(str(tmp_path / f"{name}.py"))
        return names, tmp_path / "outputs" / "examples" / name

    return run_example


def test_every_example_is_tested_and_has_cells():
    found = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert {f"test_{name}" for name in found} <= set(globals())
    for name, text in found.items():
        assert text.count("\n# %% ") >= 5, name
        assert f"python examples/{name}.py" in text and "MODEL = default_model()" in text


def test_locate_phrases(run, capsys):
    names, output = run("locate_phrases")
    stdout = capsys.readouterr().out
    with Image.open(names["path"]) as last:
        assert max(last.size) == 320
    first = Image.open(output / "pictures" / "scene0.png")
    pictures = {name: Image.open(output / f"{name}.png") for name in ("one", "several", "similarity", "figure")}
    for name in ("one", "several", "similarity"):
        assert pictures[name].size == first.size
        assert not np.array_equal(np.asarray(pictures[name]), np.asarray(first))
    assert pictures["figure"].width > 3 * 320
    rows = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"scene{number}.png" for number in range(6)]
    # The same answers one at a time.
    for row, (path, phrases) in zip(rows, names["phrases_of"].items(), strict=True):
        answer = names["finder"](str(path), phrases[0], mask=False)
        assert answer["label"] == row["label"] and answer["box"] == pytest.approx(row["box"], abs=0.02)
    assert f"{sum(row['score'] >= names['threshold'] for row in rows)} answers of 6 are kept" in stdout


def test_look_inside(run):
    names, output = run("look_inside")
    outputs, maps = names["outputs"], names["maps"]
    assert len(maps) == len(outputs.hidden_states) - 1 == len(outputs.attentions) == 2
    # What is read off the hidden states of a layer is what a model that ends there would compute.
    shallow = names["model"].oneref
    del shallow.beit3.layers[1:]
    with torch.no_grad():
        torch.testing.assert_close(shallow(**names["inputs"]).similarity_map, maps[0])
    # Rows of attention are distributions, so what is on words and patches adds up.
    rows = names["attention"].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert names["inside"].any() and len(names["to_words"]) == len(names["pieces"]) - 2
    for name in ("similarity_by_layer", "words_to_patches", "patches_to_words"):
        with Image.open(output / f"{name}.png") as picture:
            colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
            assert min(picture.size) > 200 and len(colours) > 500


def test_prelabel_and_correct(run):
    from pycocotools.coco import COCO

    names, output = run("prelabel_and_correct")
    coco = COCO(str(output / "coco.json"))
    assert len(coco.imgs) == 8 and len(coco.anns) == 16
    scores = [min(coco.anns[key]["score"] for key in coco.getAnnIds(imgIds=number)) for number in coco.getImgIds()]
    assert scores == sorted(scores)  # the least certain picture comes first
    records = load_referring_dataset(output / "corrected.json", None, images=output / "pictures", strict=True)
    assert len(records) == 15 and records[0]["phrase"].endswith(" over there")
    assert records[1]["box"] == [40, 30, 120.5, 90] and records[1]["rle"] is None and records[0]["rle"] is not None
    exported = names["records"]
    assert exported["phrase"][:] == [answer["label"] for answer in names["labelled"][0].answers]
    assert Image.open(output / "corrected.png").height > 500


def test_fine_tune_own_data(run):
    smaller = {'NUM_PHRASES = {"train": 256, "val": 64}': 'NUM_PHRASES = {"train": 64, "val": 16}'}
    names, output = run("fine_tune_own_data", smaller)
    losses = [row["loss"] for row in names["trainer"].state.log_history if "loss" in row]
    assert len(losses) == 2 and losses[1] < 0.93 * losses[0]
    assert {"eval_accuracy@0.5", "eval_miou"} <= names["after"].keys() & names["before"].keys()
    phrases = names["records"]["val"]["phrase"][:]
    assert len(phrases) == 16 and all(phrase.partition(", ")[0] in names["SHAPES"].values() for phrase in phrases)
    saved = OneRefForSegmentation.from_pretrained(output / "model").state_dict()
    for name, value in names["model"].state_dict().items():
        assert torch.equal(saved[name], value.cpu()), name
    with Image.open(output / "answer.png") as picture:
        assert max(picture.size) == 320
