# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The small model in the package: it is there, it answers, and its card tells the truth."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_script

from oneref_hf import SMALL_MODEL, OneRefForSegmentation, OneRefProcessor, cli
from oneref_hf.data.scenes import SceneRecords
from oneref_hf.data.scenes.showcase import showcase
from oneref_hf.metrics import box_iou, score_auroc
from oneref_hf.pipeline_oneref import ReferringExpressionPipeline


SCRIPT = Path(__file__).parents[1] / "training" / "ship_small_model.py"
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def finder():
    return ReferringExpressionPipeline(
        model=OneRefForSegmentation.from_pretrained(SMALL_MODEL),
        processor=OneRefProcessor.from_pretrained(SMALL_MODEL),
        device="cpu",
    )


def reached(card: str) -> dict[str, float]:
    """Boxes right by expression type, as the card tells."""
    rows = re.findall(r"^\| (\w+) \| \d+ \| (0\.\d{3}) \|", card, flags=re.MULTILINE)
    return {name: float(value) for name, value in rows}


def aim_of(card: str, title: str) -> float:
    """What the card says was reached of an aim."""
    return float(re.search(rf"^\| {title} \| at least [\d.]+ \| ([\d.]+) \|", card, re.MULTILINE)[1])


def test_it_is_small():
    names = {path.name for path in SMALL_MODEL.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in SMALL_MODEL.iterdir()) < 16e6


def test_readme_and_card_agree():
    card, readme = (path.read_text(encoding="utf-8") for path in (SMALL_MODEL / "README.md", README))
    scores = card[card.index("## How good it is") : card.index("## How it was made")]
    tables = [line for line in scores.splitlines() if line.startswith("| ")]
    assert len(tables) > 14
    for line in tables:
        assert f"\n{line}\n" in readme
    model = OneRefForSegmentation.from_pretrained(SMALL_MODEL)
    millions = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters"
    assert millions in " ".join(card.split()) and millions in " ".join(readme.split())


def test_the_card_tells_how_good_it_is(finder):
    """On scenes that nobody has seen, neither in training nor for the card."""
    card = (SMALL_MODEL / "README.md").read_text()
    said = reached(card)
    records = SceneRecords("test", 160, seed=11, size=128)[:]
    answers = finder([{"image": record["image"], "text": record["phrase"]} for record in records], batch_size=16)
    found = torch.tensor([list(answer["box"].values()) for answer in answers])
    right = (box_iou(found, torch.tensor([record["box"] for record in records]), "xyxy") >= 0.5).float()
    # Three standard errors of 160 samples.
    margin = 3 * (said["all"] * (1 - said["all"]) / len(records)) ** 0.5
    assert right.mean().item() == pytest.approx(said["all"], abs=margin)
    assert len(said) == 9
    masks = [np.asarray(answer["mask"]) > 0 for answer in answers], [np.asarray(record["mask"]) for record in records]
    overlaps = [(mask & wanted).sum() / (mask | wanted).sum() for mask, wanted in zip(*masks)]
    assert np.mean(overlaps) == pytest.approx(aim_of(card, "mean IoU of masks"), abs=0.09)
    auroc = score_auroc([answer["score"] for answer in answers], right.bool().tolist())
    assert auroc == pytest.approx(aim_of(card, r"score tells right from wrong \(AUROC\)"), abs=0.12)


def test_the_command_without_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ground", "--example", "--mask", "--device", "cpu"]) == 0
    stdout, stderr = capsys.readouterr()
    assert {path.name for path in tmp_path.iterdir()} >= {"oneref-example.png", "oneref-example.mask1.png"}
    assert "knows drawn scenes and no photographs" in stderr
    assert "convert_oneref.py --name res-base-mixed" in stderr
    picture, phrases = showcase(cli.EXAMPLE)
    assert [line.split("  ")[0] for line in stdout.splitlines()[1 : 1 + len(phrases)]] == phrases

    # On a given picture as well.
    picture.save("mine.png")
    assert cli.main(["ground", "mine.png", phrases[1], "--output", "mine-answer.png", "--device", "cpu"]) == 0
    again, notice = capsys.readouterr()
    assert again.splitlines()[1].split()[-5:] == stdout.splitlines()[2].split()[-5:]
    assert "knows drawn scenes and no photographs" in notice and Path("mine-answer.png").is_file()

    assert cli.main(["ground", "--example", "41", "--output", "other.png", "--device", "cpu"]) == 0
    picture, phrases = showcase(41)
    assert phrases == [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    with Image.open("other.png") as drawn:
        assert drawn.size[0] == picture.size[0]
        assert (np.asarray(drawn.convert("RGB"))[: picture.height] != np.asarray(picture)).any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "IMAGE and PHRASE are missing"),
        (["picture.png"], "PHRASE is missing"),
        (["picture.png", "the cup", "--example"], "leave out IMAGE and PHRASE"),
        (["--example", "-3"], "leave out the number -3"),
    ],
)
def test_what_to_ask_is_missing(arguments, sentence, capsys):
    assert cli.main(["ground", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def results(**changes):
    def group(accuracy, miou, auroc=0.9):
        return {"samples": 250, "rec": {"accuracy@0.5": accuracy, "score_auroc": auroc}, "res": {"miou": miou}}

    kinds = {"place": group(0.95, 0.85), "relation": group(0.86, 0.8)}
    test = {**group(0.93, 0.81), "by_expression_type": kinds}
    unseen = {**group(0.87, 0.75), "by_expression_type": {name: group(0.8, 0.7) for name in kinds}}
    return {"test": test, "compositional": unseen, **changes}


def test_a_card_says_what_was_missed(script):
    lines = script.aims_table(results()).splitlines()
    assert lines[2] == "| boxes right (IoU of at least 0.5) | at least 0.92 | 0.930 |  |"
    assert lines[3] == "| the same, weakest expression type (`relation`) | at least 0.85 | 0.860 |  |"
    assert lines[-1] == "| fewer boxes right on unseen colour-shape pairs | at most 0.05 | 0.060 | missed |"
    assert "| relation | 250 | 0.860 | 0.800 | 0.800 |" in script.types_table(results())


def test_shipping(script, tmp_path, capsys):
    facts = tmp_path / "results.json"
    facts.write_text(json.dumps({"protocol": "picture", "splits": results()}))
    output = tmp_path / "shipped"
    command = ["--model", str(SMALL_MODEL), "--results", str(facts), "--output", str(output)]
    assert script.main(command) == script.main(command) == 0
    assert {path.name for path in output.iterdir()} == {*script.FILES, "README.md"}
    assert (output / "model.safetensors").read_bytes() == (SMALL_MODEL / "model.safetensors").read_bytes()
    card = (output / "README.md").read_text()
    assert reached(card)["relation"] == 0.86 and "--protocol picture" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "shipped"]
    capsys.readouterr()
    facts.write_text(json.dumps({"protocol": "picture", "splits": {"test": {}}}))
    assert script.main(command) == 1
    assert "lacks scores of test or compositional" in capsys.readouterr().err
    facts.write_text(json.dumps({"protocol": "canvas", "splits": results()}))
    assert script.main(command) == 1
    assert "evaluate with `--protocol picture`" in capsys.readouterr().err
    assert script.main([*command[2:], "--model", str(tmp_path)]) == 1
    assert "has no config.json, model.safetensors" in capsys.readouterr().err
    assert output.is_dir(), "what was shipped before stays"
    facts.write_text(json.dumps({"protocol": "picture", "splits": results()}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert script.main([*command[:-1], str(tmp_path / "mine")]) == 1
    assert "holds something else than a model" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
