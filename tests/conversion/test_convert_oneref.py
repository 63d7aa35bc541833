# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Converted directories compute what the original computed, say what became of every parameter, or do not appear."""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import convert_oneref
import convert_vqkd
import pytest
import torch
from conftest import load_original
from convert_oneref import Options, main
from manifest import load_manifest
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors_writer import SINGLE_FILE, TensorToWrite, parse_size, split_into_shards, write_model
from scripts import load_script
from sources import Source, SourceError

import oneref_hf


TOLERANCE = {"atol": 1e-4, "rtol": 0}
CONVERT = Path(__file__).parents[2] / "conversion" / "convert_oneref.py"


def converted(checkpoint, output: Path, *options, tokenizer: Path | None = None) -> Path:
    """Runs the command in this process, which must succeed."""
    words = ["--tokenizer", tokenizer] if tokenizer else ["--no-tokenizer"]
    assert main([str(word) for word in (checkpoint, "--output", output, *words, *options)]) == 0
    return output


def refused(capsys, tmp_path: Path, checkpoint, *options, output: str = "out") -> str:
    """Runs the command, which must fail with one sentence and leave everything as it was; returns the sentence."""
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    capsys.readouterr()
    words = [] if "--tokenizer" in options else ["--no-tokenizer"]
    assert main([str(word) for word in (checkpoint, "--output", tmp_path / output, *words, *options)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("convert_oneref: ")
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    return captured.err


@pytest.fixture
def golden_inputs(golden) -> dict[str, torch.Tensor]:
    return {name: golden[f"inputs.{name}"] for name in ("pixel_values", "input_ids", "attention_mask")}


def report_of(directory: Path) -> dict:
    return json.loads((directory / "conversion_report.json").read_text())


# Golden conversions -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["beit3", "rec", "res", "mrefm"])
def test_backbone_equals_the_original(tmp_path, original_checkpoint, golden, golden_inputs, kind):
    directory = converted(original_checkpoint(kind), tmp_path / "out", "--task", "backbone")
    model = oneref_hf.Beit3Model.from_pretrained(directory).eval()
    with torch.no_grad():
        outputs = model(**golden_inputs)
    torch.testing.assert_close(outputs.vision_last_hidden_state, golden["eval.vision_hidden_state"], **TOLERANCE)
    kept = golden_inputs["attention_mask"].bool()
    torch.testing.assert_close(
        outputs.text_last_hidden_state[kept], golden["eval.text_hidden_state"][kept], **TOLERANCE
    )


@pytest.mark.parametrize(
    ("kind", "task", "class_name"),
    [
        ("rec", "auto", "OneRefForGrounding"),
        ("res", "auto", "OneRefForSegmentation"),
        ("res", "grounding", "OneRefForGrounding"),
        ("mrefm", "auto", "OneRefForPreTraining"),
        ("mrefm", "segmentation", "OneRefForSegmentation"),
        ("mrefm", "grounding", "OneRefForGrounding"),
    ],
)
def test_heads_equal_the_original(tmp_path, original_checkpoint, golden, golden_inputs, kind, task, class_name):
    directory = converted(original_checkpoint(kind), tmp_path / "out", "--task", task)
    model, info = getattr(oneref_hf, class_name).from_pretrained(directory, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        outputs = model.eval()(**golden_inputs)
    torch.testing.assert_close(outputs.pred_boxes, golden["eval.pred_boxes_cxcywh"], **TOLERANCE)
    torch.testing.assert_close(outputs.similarity_map.flatten(1), golden["eval.similarity"], **TOLERANCE)
    if "Segmentation" in class_name:
        torch.testing.assert_close(outputs.pred_masks, golden["eval.mask_logits"][:, 0], **TOLERANCE)
    if "PreTraining" in class_name:
        masked = golden["eval.masked_patches"]
        labels = torch.where(masked, golden["inputs.codes"], -100)
        with torch.no_grad():
            outputs = model(**golden_inputs, bool_masked_pos=masked, visual_token_labels=labels)
        torch.testing.assert_close(outputs.visual_token_logits, golden["train_mim.mim_logits"], **TOLERANCE)


@pytest.mark.parametrize(("use_regress_box", "expected"), [(True, False), (False, True), (None, False)])
def test_a_model_that_never_learnt_boxes_is_marked(tmp_path, original_checkpoint, use_regress_box, expected):
    checkpoint = load_original(original_checkpoint("res"))
    if use_regress_box is None:
        del checkpoint["args"]
    else:
        checkpoint["args"].use_regress_box = use_regress_box
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    directory = converted(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert oneref_hf.OneRefConfig.from_pretrained(directory).trained_on_masks_only is expected


def test_vqkd_checkpoints_are_sent_to_their_own_script(tmp_path, original_checkpoint, capsys):
    assert "convert_vqkd.py" in refused(capsys, tmp_path, original_checkpoint("vqkd"))


def test_other_image_size(tmp_path, original_checkpoint, golden, golden_inputs):
    directory = converted(original_checkpoint("res"), tmp_path / "out", "--image-size", 96)
    model = oneref_hf.OneRefForSegmentation.from_pretrained(directory).eval()
    assert model.config.image_size == 96
    # The golden table has the CLS row after the two unused ones, as ours.
    table = model.backbone.vision_embeddings.position_embedding.weight
    assert torch.equal(table, golden["interpolated.vision_position_embedding"])
    with torch.no_grad():
        outputs = model(
            pixel_values=golden["interpolated.pixel_values"],
            input_ids=golden_inputs["input_ids"][:1],
            attention_mask=golden_inputs["attention_mask"][:1],
        )
    torch.testing.assert_close(outputs.pred_boxes, golden["interpolated.pred_boxes_cxcywh"], **TOLERANCE)
    torch.testing.assert_close(outputs.pred_masks, golden["interpolated.mask_logits"][:, 0], **TOLERANCE)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_archives(tmp_path, original_checkpoint, compression):
    with zipfile.ZipFile(tmp_path / "release.zip", "w", compression) as archive:
        for folder, kind in [("unc", "rec"), ("unc+", "res")]:
            archive.write(original_checkpoint(kind), f"{folder}/best_checkpoint.pth")
    directory = converted(f"{tmp_path / 'release.zip'}::unc+/best_checkpoint.pth", tmp_path / "out")
    assert report_of(directory)["source"]["member"] == "unc+/best_checkpoint.pth"
    assert report_of(directory)["task"] == "segmentation"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "release.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("form", ["../../{}", "{root}/{}", "unc/../../../{}"])
def test_members_that_point_outside_are_read_where_they_are(tmp_path, original_checkpoint, compression, form):
    """Nothing is unpacked by its name: neither a checkpoint so called nor the entries inside one."""
    member = form.format("x.pth", root=tmp_path)
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(original_checkpoint("rec")) as old, zipfile.ZipFile(checkpoint, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(form.format("y.pth", root=tmp_path), b"precious")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "release.zip", "w", compression) as archive:
        archive.writestr(member, checkpoint.getvalue())
        archive.writestr("../../z.txt", b"precious")
    named = converted(f"{folder / 'release.zip'}::{member}", folder / "named")
    assert report_of(named)["source"]["member"] == member
    only = converted(folder / "release.zip", folder / "only")  # the archive's one checkpoint need not be named
    assert (only / SINGLE_FILE).read_bytes() == (named / SINGLE_FILE).read_bytes()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in written} == {"release.zip", "named", "only"}
    assert not {path.name for path in written} & {"x.pth", "y.pth", "z.txt"}


# What is in a converted directory -----------------------------------------------------------------------------------
def test_processor_and_tokenizer(tmp_path, original_checkpoint, fixtures_dir, golden_facts, golden):
    spm = fixtures_dir / "tiny.spm"
    directory = converted(original_checkpoint("rec"), tmp_path / "out", tokenizer=spm)
    processor = oneref_hf.OneRefProcessor.from_pretrained(directory)
    size = processor.image_processor.size
    assert (size["height"], size["width"]) == (64, 64)
    ids = processor.tokenizer(golden_facts["texts"][0])["input_ids"]
    assert ids == golden["inputs.input_ids"][0][: len(ids)].tolist()
    assert not list(directory.glob("*.spm"))


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
    path.write_text(json.dumps(content))


def make_larger(folder: Path) -> None:
    path = next(path for path in folder.glob("*.json") if "image_processor_type" in path.read_text())
    path.write_text(path.read_text().replace("64", "96"))


def cut(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap_words, "The tokenizer that was written has other ids than"),
        (make_larger, "not of 64 pixels"),
        (cut, "The processor that was written does not load back"),
    ],
)
def test_verification_loads_the_processor(
    tmp_path, original_checkpoint, fixtures_dir, capsys, monkeypatch, spoil, message
):
    save = oneref_hf.OneRefProcessor.save_pretrained

    def spoilt(self, folder, **options):
        save(self, folder, **options)
        spoil(Path(folder))

    monkeypatch.setattr(oneref_hf.OneRefProcessor, "save_pretrained", spoilt)
    arguments = (original_checkpoint("rec"), "--tokenizer", fixtures_dir / "tiny.spm")
    assert message in refused(capsys, tmp_path, *arguments)
    converted(arguments[0], tmp_path / "out", "--no-verify", tokenizer=arguments[2])


def test_tokenizer_that_does_not_belong(tmp_path, original_checkpoint, fixtures_dir, capsys):
    spm = fixtures_dir / "beit3_partial.spm"
    message = refused(capsys, tmp_path, original_checkpoint("rec"), "--tokenizer", spm)
    assert "do not belong together" in message


def test_report(tmp_path, original_checkpoint):
    path = original_checkpoint("res")
    assert report_of(converted(path, tmp_path / "plain"))["source"]["sha256"] is None
    report = report_of(converted(path, tmp_path / "out", "--checksum"))
    original = load_original(path)["model"]
    mapped = {source for sources in report["mapped"].values() for source in sources}
    assert mapped | set(report["dropped"]) == set(original)
    assert set(report["dropped"].values()) == {"the original's forward pass never uses it"}
    assert report["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (report["model_class"], report["dtype"], report["image_size"]) == ("OneRefForSegmentation", "float32", 64)
    assert (report["source"]["dtype"], report["source"]["image_size"]) == ("float32", 64)
    assert (report["verified"], report["processor"], report["fresh"]) == (True, False, {})
    assert report["original_training"]["epoch"] == 19
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert set(report["mapped"]) == set(weights)
    assert report["bytes"] == sum(tensor.nbytes for tensor in weights.values())
    assert "OneRefForSegmentation" in (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in json.dumps(report)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_types_are_kept_unless_asked(tmp_path, original_checkpoint, stored, dtype):
    original = load_original(original_checkpoint("res"))["model"]
    original = {name: value.to(stored) if value.is_floating_point() else value for name, value in original.items()}
    torch.save({"model": original}, tmp_path / "checkpoint.pth")
    directory = converted(tmp_path / "checkpoint.pth", tmp_path / "out", *(["--dtype", dtype] if dtype else []))
    expected = stored if dtype is None else getattr(torch, dtype)
    written = load_file(directory / "model.safetensors")
    assert json.loads((directory / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")
    for name, sources in report_of(directory)["mapped"].items():
        values = torch.cat([original[source] for source in sources]) if len(sources) > 1 else original[sources[0]]
        wanted = values.to(expected) if values.is_floating_point() else values
        assert written[name].dtype == wanted.dtype and torch.equal(written[name], wanted), name
    assert written["mask_head.norms.0.num_batches_tracked"].dtype == torch.int64
    assert oneref_hf.OneRefForSegmentation.from_pretrained(directory).dtype == expected


def test_interpolated_half_precision_positions_are_not_rounded_twice(tmp_path, original_checkpoint, golden):
    original = load_original(original_checkpoint("beit3"))["model"]
    name = "beit3.encoder.embed_positions.A.weight"
    torch.save({"model": {**original, name: original[name].half()}}, tmp_path / "checkpoint.pth")
    directory = converted(tmp_path / "checkpoint.pth", tmp_path / "out", "--image-size", "96", "--dtype", "float32")
    table = load_file(directory / "model.safetensors")["vision_embeddings.position_embedding.weight"]
    torch.testing.assert_close(table, golden["interpolated.vision_position_embedding"], atol=1e-3, rtol=0)
    grid = original[name].half()[3:].float().T.reshape(1, 128, 4, 4)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic")
    assert torch.equal(table[3:], grid.reshape(128, 36).T)


def test_values_beyond_float16(tmp_path, original_checkpoint, capsys):
    original = load_original(original_checkpoint("beit3"))["model"]
    original["beit3.vision_embed.proj.bias"][0] = 1e6
    torch.save({"model": original}, tmp_path / "checkpoint.pth")
    message = refused(capsys, tmp_path, tmp_path / "checkpoint.pth", "--dtype", "float16")
    assert "patch_embedding.bias has values that float16 cannot hold" in message
    converted(tmp_path / "checkpoint.pth", tmp_path / "out", "--dtype", "bfloat16")


def test_shards(tmp_path, original_checkpoint, golden, golden_inputs):
    directory = converted(original_checkpoint("rec"), tmp_path / "out", "--max-shard-size", "1MB")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(directory / file, framework="pt") as opened:
            assert sorted(opened.keys()) == sorted(name for name, at in index["weight_map"].items() if at == file)
        assert (directory / file).stat().st_size < 1.05e6
    with torch.no_grad():
        outputs = oneref_hf.OneRefForGrounding.from_pretrained(directory).eval()(**golden_inputs)
    torch.testing.assert_close(outputs.pred_boxes, golden["eval.pred_boxes_cxcywh"], **TOLERANCE)


def test_loads_where_the_package_is_not_installed(tmp_path, original_checkpoint, fixtures_dir):
    directory = converted(original_checkpoint("rec"), tmp_path / "out", tokenizer=fixtures_dir / "tiny.spm")
    script = f"""
import sys
sys.modules["oneref_hf"] = None  # as if it were not installed
from transformers import AutoModel, AutoModelForZeroShotObjectDetection
for auto_class in (AutoModel, AutoModelForZeroShotObjectDetection):
    print(type(auto_class.from_pretrained({str(directory)!r}, trust_remote_code=True)).__name__)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["OneRefModel", "OneRefForGrounding"], done.stderr


# Refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("rec", "segmentation", "needs seg_conv1, seg_conv2, seg_conv3, bn1, bn2, bn3.* use --task grounding"),
        ("rec", "pretraining", "needs mim_head, mlm_head.* use --task grounding"),
        ("beit3", "grounding", "which this backbone checkpoint does not have; use --task backbone"),
    ],
)
def test_wrong_kind_for_the_task(tmp_path, original_checkpoint, capsys, kind, task, message):
    error = refused(capsys, tmp_path, original_checkpoint(kind), "--task", task)
    assert re.search(message, error)


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_hostile_checkpoint(tmp_path, original_checkpoint, capsys):
    marker = tmp_path / "executed"
    checkpoint = load_original(original_checkpoint("rec"))
    torch.save({**checkpoint, "args": argparse.Namespace(x=Hostile(marker))}, tmp_path / "checkpoint.pth")
    assert "nothing in it was executed" in refused(capsys, tmp_path, tmp_path / "checkpoint.pth")
    assert not marker.exists()


def test_failures_leave_nothing(tmp_path, original_checkpoint, capsys):
    data = bytearray(original_checkpoint("rec").read_bytes())
    (tmp_path / "truncated.pth").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1  # in the bytes of a weight
    (tmp_path / "flipped.pth").write_bytes(data)
    assert "truncated" in refused(capsys, tmp_path, tmp_path / "truncated.pth", output="new/folder/out")
    assert "checksum" in refused(capsys, tmp_path, tmp_path / "flipped.pth", output="new/folder/out")
    assert "There is no file" in refused(capsys, tmp_path, tmp_path / "nowhere.pth")
    size = refused(capsys, tmp_path, original_checkpoint("rec"), "--image-size", "100")
    assert "100 is not a multiple of the patch 16" in size


@pytest.mark.parametrize("earlier", [False, True])
def test_interruptions_leave_what_was_there(tmp_path, original_checkpoint, monkeypatch, earlier):
    if earlier:
        converted(original_checkpoint("rec"), tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_oneref, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(original_checkpoint("res"), tmp_path / "out", "--overwrite")
    assert sorted(tmp_path.rglob("*")) == before
    assert not earlier or report_of(tmp_path / "out")["task"] == "grounding"


def test_unknown_parameters(tmp_path, original_checkpoint, capsys):
    original = load_original(original_checkpoint("rec"))["model"]
    torch.save({"model": {**original, "novel.weight": torch.ones(2)}}, tmp_path / "checkpoint.pth")
    assert "novel.weight" in refused(capsys, tmp_path, tmp_path / "checkpoint.pth")
    directory = converted(tmp_path / "checkpoint.pth", tmp_path / "out", "--allow-unused")
    assert "novel.weight" in report_of(directory)["dropped"]


def test_weights_of_another_type(tmp_path, original_checkpoint, capsys):
    original = load_original(original_checkpoint("rec"))["model"]
    torch.save({"model": {**original, "logit_scale": torch.tensor(3)}}, tmp_path / "checkpoint.pth")
    assert "logit_scale is of type torch.int64" in refused(capsys, tmp_path, tmp_path / "checkpoint.pth")


def test_existing_output(tmp_path, original_checkpoint, capsys):
    directory = converted(original_checkpoint("rec"), tmp_path / "out")
    assert "--overwrite" in refused(capsys, tmp_path, original_checkpoint("res"))
    assert report_of(directory)["task"] == "grounding"
    converted(original_checkpoint("res"), directory, "--overwrite")
    assert report_of(directory)["task"] == "segmentation"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    photos = tmp_path / "photos"
    photos.mkdir()
    converted(original_checkpoint("rec"), photos)  # an empty directory is no loss
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_text("precious")
    for options in ((), ("--overwrite",)):
        message = refused(capsys, tmp_path, original_checkpoint("rec"), *options, output="other")
        assert "something else than an earlier conversion" in message

    inside = directory / "original.pth"
    inside.write_bytes(original_checkpoint("rec").read_bytes())
    assert "lies inside" in refused(capsys, tmp_path, inside, "--overwrite")


def test_no_room_on_the_disk(tmp_path, original_checkpoint, capsys, monkeypatch):
    usage = argparse.Namespace(free=1000)
    monkeypatch.setattr(convert_oneref.shutil, "disk_usage", lambda path: usage)
    assert "has room for 1,000 only" in refused(capsys, tmp_path, original_checkpoint("rec"))


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_verification_finds_a_single_wrong_bit(tmp_path, original_checkpoint, capsys, monkeypatch, at):
    def spoilt(folder, *arguments):
        files = write_model(folder, *arguments)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[int(len(data) * at)] ^= 1
        path.write_bytes(data)
        return files

    monkeypatch.setattr(convert_oneref, "write_model", spoilt)
    assert "differs from the source in" in refused(capsys, tmp_path, original_checkpoint("rec"))
    assert report_of(converted(original_checkpoint("rec"), tmp_path / "out", "--no-verify"))["verified"] is False


def cut_weights(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def break_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def rename_a_weight(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"oneref.logit_scale"', b'"oneref.logit_scalf"', 1))


UNREADABLE = [
    (cut_weights, "cannot be written or read back"),
    (break_header, "cannot be written or read back"),
    (rename_a_weight, "differs from the source in oneref.logit_scale, oneref.logit_scalf."),
]


@pytest.mark.parametrize(("spoil", "message"), UNREADABLE)
def test_weights_that_do_not_read_back(tmp_path, original_checkpoint, capsys, monkeypatch, spoil, message):
    """The library's own error is no `ValueError`."""

    def spoilt(folder, *arguments):
        files = write_model(folder, *arguments)
        spoil(folder / SINGLE_FILE)
        return files

    monkeypatch.setattr(convert_oneref, "write_model", spoilt)
    assert message in refused(capsys, tmp_path, original_checkpoint("rec"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.pth", "--output", "o"],
        ["a.pth", "--no-tokenizer"],
        ["a.pth", "--output", "o", "--tokenizer", "t", "--no-tokenizer"],
        ["a.pth", "--all"],
        ["--only", "x", "--name", "y"],
        ["a.pth", "--output", "o", "--no-tokenizer", "--max-shard-size", "big"],
        ["a.pth", "--output", "o", "--no-tokenizer", "--image-size", "0"],
    ],
)
def test_wrong_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_as_a_command(tmp_path, original_checkpoint):
    """The real command line: exit code and one sentence, no traceback."""
    command = [sys.executable, str(CONVERT), str(original_checkpoint("beit3")), "--no-tokenizer"]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0 and "convert_oneref" not in done.stderr  # a library may say things of its own
    assert done.stdout.startswith(f"Wrote {tmp_path / 'out'}: Beit3Model, ")
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("convert_oneref: ")) == (1, "", 1)
    assert "Traceback" not in done.stderr


# Released models --------------------------------------------------------------------------------------------------
@pytest.fixture
def release(monkeypatch, original_checkpoint, fixtures_dir):
    """Stands in for the Hub: every released model is one of the golden checkpoints; some cannot be had."""
    kinds = {
        "grounding": "rec",
        "segmentation": "res",
        "pretraining": "mrefm",
        "backbone": "beit3",
        "tokenizer": "vqkd",
    }
    missing: set[str] = set()

    def released(name: str) -> Source:
        if name in missing:
            raise SourceError(f"'{name}' was not found; tried everything.")
        row = load_manifest().model(name)
        return Source(original_checkpoint(kinds[row.kind]), None, name, row.repos[0], row.file, "abc", row)

    monkeypatch.setattr(convert_oneref, "released", released)
    monkeypatch.setattr(convert_vqkd, "released", released)
    monkeypatch.setattr(convert_oneref, "released_tokenizer", lambda: fixtures_dir / "tiny.spm")
    return missing


def test_by_name(tmp_path, monkeypatch, release, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--name", "res-base-refcoco", "--checksum"]) == 0
    report = report_of(tmp_path / "converted" / "res-base-refcoco")
    assert (report["task"], report["source"]["revision"]) == ("segmentation", "abc")
    assert (tmp_path / "converted" / "res-base-refcoco" / "tokenizer.json").exists()
    card = (tmp_path / "converted" / "res-base-refcoco" / "README.md").read_text()
    assert "model-index" in card and report["source"]["sha256"] in card
    assert main(["--name", "vqkd"]) == 1
    assert "convert_vqkd.py --name" in capsys.readouterr().err
    assert convert_vqkd.main(["--name", "rec-base-refcoco"]) == 1
    assert "convert_oneref.py --name" in capsys.readouterr().err
    assert convert_vqkd.main(["--name", "vqkd"]) == 0
    report = report_of(tmp_path / "converted" / "vqkd")
    assert (report["task"], report["source"]["revision"]) == ("tokenizer", "abc")
    assert report["source"]["sha256"] in (tmp_path / "converted" / "vqkd" / "README.md").read_text()


def test_the_kind_of_a_released_model_is_checked(tmp_path, monkeypatch, release, original_checkpoint, capsys):
    monkeypatch.setattr(convert_oneref, "released", lambda name: Source(original_checkpoint("rec")))
    assert main(["--name", "res-base-refcoco", "--output", str(tmp_path / "out")]) == 1
    assert "--task segmentation needs seg_conv1" in capsys.readouterr().err


def test_many(tmp_path, release, capsys):
    names = [row.name for row in load_manifest() if row.name.startswith("res-base-")]
    assert len(names) >= 3
    release.add(names[1])
    command = ["--all", "--only", "res-base-*", "--no-tokenizer", "--output", str(tmp_path)]
    assert main(command) == 1  # goes on after the failure, and tells
    table = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(table) == names
    assert "FAILED" in table[names[1]] and "tried everything" in table[names[1]]
    assert "converted" in table[names[2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(names) - release)

    release.clear()
    assert main(command) == 0
    table = capsys.readouterr().out.splitlines()
    assert ["skipped" in line for line in table] == [name != names[1] for name in names]
    assert ["converted" in line for line in table] == [name == names[1] for name in names]

    assert main([*command[:2], "nothing-*", *command[3:]]) == 1
    assert "No released model" in capsys.readouterr().err


def test_a_model_whose_weights_do_not_read_back_does_not_stop_the_rest(tmp_path, release, capsys, monkeypatch):
    def spoilt(folder, *arguments):
        files = write_model(folder, *arguments)
        if "base" in folder.name:
            break_header(folder / SINGLE_FILE)
        return files

    monkeypatch.setattr(convert_oneref, "write_model", spoilt)
    assert main(["--all", "--only", "beit3-*", "--no-tokenizer", "--output", str(tmp_path)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["beit3-base", "FAILED"] and "cannot be written or read back" in first
    assert second.split()[:2] == ["beit3-large", "converted"]
    assert [path.name for path in tmp_path.iterdir()] == ["beit3-large"]


def test_what_is_done_with_other_options_is_not_done(tmp_path, release, capsys):
    def table(*options: str) -> tuple[int, dict[str, str]]:
        code = main(["--all", "--only", "[bv]*", "--output", str(tmp_path), *options])
        lines = capsys.readouterr().out.splitlines()
        return code, {line.split()[0]: " ".join(line.split()[1:]) for line in lines}

    bare = ("--no-tokenizer",)
    code, outcomes = table(*bare)
    assert code == 0 and list(outcomes) == ["beit3-base", "beit3-large", "vqkd"]
    assert all(outcome.startswith("converted") for outcome in outcomes.values())
    done_before = (0, dict.fromkeys(outcomes, "skipped done before"))
    # What is asked for is what the checkpoints hold anyway; the visual tokenizer has no image size.
    for options in ((), ("--dtype", "float32"), ("--image-size", "64"), ("--max-shard-size", "1MB")):
        assert table(*bare, *options) == done_before

    redo = "; --overwrite converts it again"
    code, differing = table(*bare, "--dtype", "bfloat16", "--image-size", "96")
    both = f"DIFFERS exists with dtype float32 instead of bfloat16, image size 64 instead of 96{redo}"
    assert code == 1
    assert differing == {**dict.fromkeys(outcomes, both), "vqkd": both.replace(", image size 64 instead of 96", "")}
    assert table(*bare, "--task", "backbone") == done_before
    code, differing = table(*bare, "--task", "grounding")
    assert code == 1 and differing["vqkd"] == "skipped done before"
    assert differing["beit3-base"] == f"DIFFERS exists with task backbone instead of grounding{redo}"
    code, differing = table()
    assert code == 1 and differing["vqkd"] == "skipped done before"
    assert differing["beit3-base"] == f"DIFFERS exists with no processor{redo}"

    assert table(*bare, "--dtype", "bfloat16", "--image-size", "96", "--overwrite")[0] == 0
    assert table(*bare, "--dtype", "bfloat16", "--image-size", "96") == done_before
    assert table(*bare)[1]["beit3-base"] == (
        f"DIFFERS exists with dtype bfloat16 instead of float32, image size 96 instead of 64{redo}"
    )
    (tmp_path / "vqkd" / "conversion_report.json").write_text("[")
    assert "a conversion_report.json that does not say how it was made" in table(*bare)[1]["vqkd"]


def test_all_covers_every_released_model(tmp_path, release, monkeypatch):
    seen = []
    for script in (convert_oneref, convert_vqkd):
        monkeypatch.setattr(script, "convert", lambda source, output, *_: seen.append(output.name) or {"bytes": 0})
    assert main(["--all", "--no-tokenizer", "--output", str(tmp_path)]) == 0
    assert seen == [row.name for row in load_manifest()] and "vqkd" in seen


@pytest.mark.parametrize("terminal", [True, False])
def test_many_models_have_a_progress_bar_on_a_terminal(tmp_path, release, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert convert_oneref.convert_all("beit3-*", tmp_path, None, Options())
    captured = capsys.readouterr()
    assert ("100%" in captured.err and "2/2 [" in captured.err and "model" in captured.err) == terminal
    assert ("%" in captured.err) == terminal and "%" not in captured.out


# Writing safetensors ------------------------------------------------------------------------------------------------
def test_sizes():
    assert [parse_size(text) for text in ("5GB", "1.5 MB", "2kib", "10", "7b")] == [5 * 10**9, 1_500_000, 2048, 10, 7]
    for text in ("", "GB", "-1GB", "5XB", "0GB", "1e9"):
        with pytest.raises(ValueError, match=r"size|empty"):
            parse_size(text)


def test_shards_are_filled_in_order():
    tensors = [TensorToWrite(str(size), (size,), torch.uint8, torch.empty) for size in (3, 4, 20, 2, 1)]
    assert [[tensor.name for tensor in shard] for shard in split_into_shards(tensors, 8)] == [
        ["3", "4"],
        ["20"],
        ["2", "1"],
    ]


def test_writer_equals_the_library(tmp_path):
    values = {
        "half": torch.randn(3, 5).half(),
        "count": torch.tensor(7),
        "brain": torch.randn(7).bfloat16(),
        "single": torch.randn(2, 2),
        "flag": torch.tensor([True]),
        "none": torch.empty(0, 4),
    }
    tensors = [
        TensorToWrite(
            name, tuple(value.shape), value.dtype, lambda value=value: value.split(2) if value.dim() else [value]
        )
        for name, value in values.items()
    ]
    written: list[int] = []
    assert write_model(tmp_path, tensors, 10**9, written.append) == dict.fromkeys(values, "model.safetensors")
    assert sum(written) == sum(value.nbytes for value in values.values())
    read = load_file(tmp_path / "model.safetensors")
    assert all(read[name].dtype == value.dtype and torch.equal(read[name], value) for name, value in values.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


# At full size -----------------------------------------------------------------------------------------------------
def test_the_kernel_counts_memory_in_kibibytes(monkeypatch):
    measure = load_script(Path(__file__).with_name("measure_conversion.py"))
    wait4 = os.wait4

    def large(pid, options):
        return *wait4(pid, options)[:2], argparse.Namespace(ru_utime=0, ru_stime=0, ru_maxrss=10**6)

    monkeypatch.setattr(os, "wait4", large)
    assert measure.in_a_process("-c", "pass").peak_mb == 1024


@pytest.mark.slow
def test_memory_at_base_size(tmp_path):
    """From a 2.7 GB training checkpoint, as a file and inside a stored and a deflated archive."""
    script = Path(__file__).with_name("measure_conversion.py")
    kinds = ("pth", "stored", "deflated")
    command = [sys.executable, str(script), "--folder", str(tmp_path), "--kinds", *kinds]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    for kind in kinds:
        assert measured[kind]["weights_mb"] > 890
        assert measured[kind]["peak_mb"] < measured[kind]["bound_mb"]
