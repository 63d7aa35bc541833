# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported models answer whole data sets, too."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from oneref_hf import cli


@pytest.fixture
def predict(fixtures_dir, tmp_path):
    """Returns a function that runs `oneref predict` and gives the exit code and the rows."""
    rows = [
        {"image": str(fixtures_dir / "coffee_210x140.png"), "phrase": ["the cup", "the spoon left of the red cup"]},
        {"image": str(fixtures_dir / "rocket_63x40.png"), "phrase": "it"},
    ]
    data = tmp_path / "val.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def run(model, *options: str):
        output = tmp_path / f"{model.parent.name}-{model.name}"
        arguments = ["--model", str(model), "--dataset", str(data), "--output", str(output), *options]
        code = cli.main(["predict", *arguments])
        shards = sorted(output.glob("*.parquet"))
        return code, [row for shard in shards for row in pq.read_table(shard).to_pylist()]

    return run


def test_a_program_answers_as_its_model_where_there_is_an_accelerator(
    predict, models, program_model, monkeypatch, capsys
):
    _, expected = predict(models / "masks")
    # An accelerator, which the program cannot be moved to.
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    code, answered = predict(program_model.folder, "--trust-remote-code")
    assert code == 0, capsys.readouterr().err
    assert [row["phrase"] for row in answered] == [row["phrase"] for row in expected]
    for row, wanted in zip(answered, expected):
        assert row["box"] == pytest.approx(wanted["box"], abs=1e-2)
        assert row["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert row["mask"]["size"] == wanted["mask"]["size"]


def test_a_program_needs_trust(predict, program_model, capsys):
    code, answered = predict(program_model.folder)
    assert code == 1 and not answered
    assert "pass trust_remote_code=True (oneref: --trust-remote-code)" in capsys.readouterr().err.splitlines()[-1]
