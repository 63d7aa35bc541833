# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The way to the small model, end to end with next to no data: scenes, start, MRefM, fine-tuning, table, card."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from scripts import load_script

from oneref_hf import OneRefForSegmentation
from oneref_hf.recipes import load_recipe


TRAINING = Path(__file__).parents[1] / "training"


def call(name: str, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            runpy.run_path(str(TRAINING / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code or 0


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "converted"
    counts = ["--train", "64", "--val", "8", "--test", "16", "--compositional", "8"]
    assert call("make_scenes", "--output", folder / "scenes", "--size", "128", *counts) == 0
    few = ["--scenes", "248", "--steps", "2", "--pictures", "110", "--device", "cpu"]
    assert call("start_small_model", "--output", folder, *few) == 0
    return folder


@pytest.fixture
def script(monkeypatch):
    """`ablate_mrefm` with two arms and little time."""
    ablate_mrefm = load_script(TRAINING / "ablate_mrefm.py")
    monkeypatch.setattr(ablate_mrefm, "ARMS", {arm: ablate_mrefm.ARMS[arm] for arm in ("no pre-training", "MRefM")})
    monkeypatch.setattr(ablate_mrefm, "_EPOCHS", 1)
    return ablate_mrefm


def test_the_ablation_and_what_ships(converted, script, tmp_path, capfd):
    changes = "--run.workers 0 --stages.all.batch_size 32 --stages.all.batch_size_per_device 32"
    command = ["--converted", str(converted), "--output", str(tmp_path / "runs"), "--seeds", "3", "--changes", changes]
    assert script.main(command) == 0
    rows = re.findall(r"^\| (.+?) \| (0\.\d{3}) \(", capfd.readouterr().out, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["no pre-training", "MRefM"]
    # As many steps in both arms: an epoch of pre-training in place of one of fine-tuning.
    steps = {}
    for path in (tmp_path / "runs").rglob("trainer_state.json"):
        arm = path.relative_to(tmp_path / "runs").parts[0]
        state = json.loads(path.read_text())
        if state["global_step"] == state["max_steps"]:
            steps[arm, path.parts[-4]] = state["max_steps"]
    assert steps == {("no-pre-training-3", "rec"): 4, ("MRefM-3", "mrefm"): 2, ("MRefM-3", "rec"): 2}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "_launch", lambda *_: pytest.fail("a finished arm runs again"))
        assert script.main(command) == 0

    finished = tmp_path / "runs" / "MRefM-3" / "rec" / "fine-tuning" / "finished"
    assert isinstance(OneRefForSegmentation.from_pretrained(finished), OneRefForSegmentation)
    scored = tmp_path / "scored"
    splits = ["--split", "test", "compositional", "--protocol", "picture", "--output", scored, "--batch-size", "8"]
    assert call("evaluate", "--model", finished, "--dataset", converted / "scenes", *splits) == 0
    shipping = ["--model", finished, "--results", scored / "results.json", "--output", tmp_path / "shipped"]
    assert call("ship_small_model", *shipping) == 0
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "| all | 16 |" in card and "missed" in card


def test_the_arms_differ_in_what_they_are_called_after():
    script = load_script(TRAINING / "ablate_mrefm.py")
    arms = {}
    for arm, changes in script.ARMS.items():
        if changes is not None:
            recipe = load_recipe(TRAINING / "recipes" / "scenes_mrefm.yaml", changes)
            (stage,) = recipe.stages
            arms[arm] = recipe.data.masking.strategy, {name for name in ("mim", "mlm") if stage.losses[name]}
    assert arms == {
        "MIM alone": ("referring", {"mim"}),
        "MLM alone": ("referring", {"mlm"}),
        "MRefM": ("referring", {"mim", "mlm"}),
        "MRefM, random masking": ("random", {"mim", "mlm"}),
        "MRefM, block-wise masking": ("blockwise", {"mim", "mlm"}),
    }
    assert set(script.ARMS) == {"no pre-training", *arms}


def test_an_arm_that_fails_is_told(converted, script, tmp_path, capfd):
    command = ["--converted", str(converted), "--output", str(tmp_path / "runs")]
    assert script.main([*command, "--changes", shlex.join(["--no.such", "key"])]) == 1
    error = capfd.readouterr().err
    assert "failed; see above" in error and "no.such" in error
