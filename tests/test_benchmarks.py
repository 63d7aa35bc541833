# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks count, measure and compare what they say; how fast anything is, is not tested."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import data_pipeline
import gpu_speed
import many_phrases
import measuring
import peers
import pytest
import scaling
import torch
import training_speed
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from oneref_hf import (
    Beit3Config,
    Beit3Model,
    OneRefConfig,
    OneRefForGrounding,
    OneRefForSegmentation,
)


BENCHMARKS = Path(measuring.__file__).parent
TINY = measuring.SIZES["tiny"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(main, monkeypatch, capsys, *arguments: str) -> list[list[str]]:
    """The cells of the tables that a benchmark prints."""
    monkeypatch.setattr(sys, "argv", ["benchmark", "--threads", "1", "--rounds", "1", *arguments])
    main()
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def counted_gflop(model, function) -> float:
    model.set_attn_implementation("eager")  # so that its products are counted as such
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(("batch_size", "text_length", "image_size"), [(1, 12, 384), (3, 7, 96)])
def test_operations_of_the_encoder(batch_size, text_length, image_size):
    model = Beit3Model(Beit3Config(**TINY, image_size=image_size)).eval()
    inputs = measuring.make_inputs(batch_size, text_length, phrase_tokens=5, image_size=image_size)
    expected = counted_gflop(model, lambda: model(**inputs))
    assert measuring.encoder_gflop(TINY, batch_size, text_length, image_size) == pytest.approx(expected, rel=1e-9)


def test_operations_of_the_mask_head():
    model = OneRefForSegmentation(OneRefConfig(**TINY, image_size=64)).eval()
    inputs = measuring.make_inputs(2, 6, phrase_tokens=6, image_size=64)
    with_masks, without = (
        counted_gflop(model, lambda wanted=wanted: model(**inputs, predict_masks=wanted)) for wanted in (True, False)
    )
    cosines = 2 * 2 * 64 * 16 * TINY["hidden_size"] / 1e9  # with the phrase, at every position of the mask
    assert measuring.mask_gflop(TINY, 2, 64) == pytest.approx(with_masks - without - cosines, rel=1e-9)


@pytest.mark.parametrize("kind", training_speed.LOSSES)
def test_operations_of_a_training_step(kind):
    """Counted where they happen; the first product needs no gradient of the picture, which the formula ignores."""
    batch, side, patches = 2, 80, 25
    options = argparse.Namespace(size="tiny", image_size=side, batch=batch, device="cpu", compile=False)
    step = training_speed.Step(kind, options)
    if kind == "image":  # the share exactly
        step.inputs[measuring.PHRASE_TOKENS]["bool_masked_pos"][:] = torch.arange(patches) < 10
    step.model.set_attn_implementation("eager")
    if step.tokenizer is not None:
        step.tokenizer.set_attn_implementation("eager")
    variant = training_speed.Variant(ours=True, dtype="float32")
    step.model.set_attn_implementation = lambda name: None
    with FlopCounterMode(display=False, depth=None) as counter:
        step.seconds(variant)
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    parts = {"rec": [], "image": ["visual_token_head"], "text": ["mlm_head"]}[kind]
    model = type(step.model).__name__
    found = sum(counts[f"{model}.{part}"] for part in ["oneref.beit3", *parts])
    found += 2 * batch * patches * 3 * measuring.PATCH_SIZE**2 * TINY["hidden_size"]
    if kind == "image":
        layers = [f"layers.{number}" for number in range(TINY["num_hidden_layers"])]
        found += sum(counts[f"VqkdModel.{part}"] for part in ["embeddings", *layers])
    assert batch * training_speed.step_gflop(kind, "tiny", side) == pytest.approx(found / 1e9, rel=1e-6)


MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
import measuring
import numpy as np

memory = measuring.PeakMemory()
for megabytes in (100, 300, 0):
    with memory:
        block = np.ones(megabytes * 10**6, dtype=np.uint8)
        del block
    print(memory.megabytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux keeps a process's highest mark")
def test_peak_memory():
    """In a process of its own: in this one the allocator may still hold what earlier tests have freed."""
    command = [sys.executable, "-c", MEMORY, str(BENCHMARKS)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for megabytes, line in zip((100, 300, 0), said, strict=True):
        assert megabytes - 30 < float(line) < megabytes + 60  # the process itself needs some, or gives it back


def test_rounds_are_interleaved_and_ratios_are_within_them():
    calls = []
    times = measuring.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3 and {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    assert measuring.ratio([4.0, 9.0, 2.0], [2.0, 3.0, 4.0]) == "2.00 (0.50-3.00)"


# Many phrases


@pytest.fixture(scope="module")
def model_directory(golden_model, tiny_processor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    golden_model(OneRefForGrounding).save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    return str(directory)


def test_sharing_layers_is_compared_with_the_exact_answer(model_directory, monkeypatch, capsys):
    rows = run(many_phrases.main, monkeypatch, capsys, "--model", model_directory, "--scenes", "3")
    assert [row[0] for row in rows] == ["0", "1", "2"]
    overlap = [float(row[3]) for row in rows]
    assert overlap[0] == 1 and all(0 <= value < 1 for value in overlap[1:])


def test_bad_options_of_many_phrases_are_named(model_directory, monkeypatch, capsys):
    for arguments, message in (
        (["--model", "nowhere"], "There is no model directory 'nowhere'."),
        (["--model", model_directory, "--shared-layers", "3"], "--shared-layers are numbers from 0 to 2"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(many_phrases.main, monkeypatch, capsys, *arguments)
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_phrases_have_the_stated_lengths():
    inputs = many_phrases.phrases_of_all_lengths(200, 32)
    lengths = inputs["attention_mask"].sum(1)
    assert inputs["pixel_values"].shape == (1, 3, 32, 32) and inputs["input_ids"].shape == (200, 22)
    assert lengths.min() == 5 and lengths.max() == 22
    assert ((inputs["input_ids"] == 1) == (inputs["attention_mask"] == 0)).all()


# Growth


def test_laws_of_growth():
    one, batch, phrases = scaling.Case(), scaling.Case(batch=4), scaling.Case(phrases=24)
    assert one.positions == 1 + 24 * 24 + 12
    assert (batch.positions, phrases.positions) == (4 * one.positions, 8 * one.positions)  # in parts of 8
    assert batch.gflop(TINY, False) == pytest.approx(4 * one.gflop(TINY, False))
    assert phrases.gflop(TINY, True) == pytest.approx(24 * one.gflop(TINY, True))
    assert one.megabytes(TINY, 2) * 2 == one.megabytes(TINY, 4)


def test_growth_is_measured_and_drawn(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    sweeps = {name: cases[:2] for name, cases in scaling.SWEEPS.items()}
    monkeypatch.setattr(scaling, "SWEEPS", sweeps)
    plot = tmp_path / "plots" / "scaling.png"
    rows = run(scaling.main, monkeypatch, capsys, "--size", "tiny", "--output", str(plot))
    assert [row[:2] for row in rows] == [
        [name, str(getattr(case, scaling.FIELDS[name]))] for name, cases in sweeps.items() for case in cases
    ]
    with Image.open(plot) as picture:
        assert picture.width > picture.height > 300
    assert [path.name for path in plot.parent.iterdir()] == ["scaling.png"]
    with pytest.raises(SystemExit):
        run(scaling.main, monkeypatch, capsys, "--size", "tiny", "--output", "plot.exe")


def test_the_gpu_benchmark_can_be_tried_without_one(monkeypatch, capsys):
    arguments = "--device cpu --size tiny --batch 1 2 --phrases 3 --dtype float32 --task segmentation"
    rows = run(gpu_speed.main, monkeypatch, capsys, *arguments.split())
    counts = [("1", "1"), ("2", "2"), ("1", "3")]
    assert [row[:4] for row in rows] == [["tiny", "sdpa", *numbers] for numbers in counts]
    assert all(re.fullmatch(r"\d+%", row[6]) for row in rows)


def test_the_data_pipeline_is_compared_step_by_step(monkeypatch, capsys):
    monkeypatch.setattr(data_pipeline, "timed", lambda function: (function(), 0.002)[1])
    monkeypatch.setattr(data_pipeline, "ORIGINAL_GFLOPS", 2 * 2048 * 768 * 3072 / 0.002 / 1e9)  # the same machine
    monkeypatch.setattr(sys, "argv", ["data_pipeline.py", "--samples", "2", "--rounds", "1"])
    data_pipeline.main()
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows[:4]] == [
        [name, "1.00"]
        for name in ("augment, normalise, pad", "patch mask", "relation labels", "tokenise and mask text")
    ]
    assert rows[4:] == [
        ["image part", "3.00", "11.5", "11.5", "0.26"],
        ["text part", "1.00", "6.0", "6.0", "0.17"],
        ["whole sample", "4.00", "17.5", "17.5", "0.23"],
    ]


# Peers


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_have_the_size_that_was_published(name):
    peer = peers.PEERS[name]
    with torch.device("meta"):
        model = peer.build()
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert parameters == pytest.approx(peer.parameters, abs=1)


def test_phrases_as_the_peers_read_them():
    inputs = peers.clip_text(3, 16)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 16)
    assert inputs["attention_mask"].sum(1).tolist() == [12] * 3
    assert inputs["input_ids"].argmax(-1).tolist() == [11] * 3  # where CLIP looks for the end of the text
    with torch.device("meta"):
        model = peers.PEERS["Grounding DINO tiny"].build()
    with pytest.raises(SystemExit):
        peers.run_grounding_dino(model, torch.zeros(1, 3, 64, 64), 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["startup.py", "--size", "tiny", "--rounds", "1"],
        ["training_speed.py", "--size", "tiny", "--image-size", "64", "--rounds", "1", "--device", "cpu"],
        ["encoder_speed.py", "--size", "tiny", "--dtype", "float32", "--rounds", "1", "--compile", "default"],
        ["peers.py", "--phrases", "1", "--rounds", "1"],
        ["many_phrases.py", "--size", "tiny", "--phrases", "1", "16", "--task", "segmentation", "--rounds", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_benchmarks_print_their_tables(arguments):
    script, *options = arguments
    result = subprocess.run([sys.executable, BENCHMARKS / script, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^\| .*\d", result.stdout, re.MULTILINE)) >= 2
    assert "nan" not in result.stdout
