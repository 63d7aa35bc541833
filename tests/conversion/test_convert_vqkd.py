# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion of the golden VQ-KD checkpoint, and of files that are broken, hostile or of another kind."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import convert_vqkd
import pytest
import torch
import vqkd_keys
from conftest import load_original
from safetensors.torch import load_file
from safetensors_writer import SINGLE_FILE

from oneref_hf.modeling_vqkd import VqkdModel


@pytest.fixture
def checkpoint(original_checkpoint):
    return original_checkpoint("vqkd")


@pytest.fixture
def changed_checkpoint(checkpoint, tmp_path):
    """Returns a function that saves the golden checkpoint with some tensors replaced, added or (None) removed."""

    def save(**changes):
        container = load_original(checkpoint)
        tensors = {**container["model"], **changes}
        container["model"] = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        path = tmp_path / "changed.pth"
        torch.save(container, path)
        return path

    return save


def run(*arguments) -> int:
    return convert_vqkd.main([str(argument) for argument in arguments])


def refusal(capsys, *arguments) -> str:
    """The sentence with which a command fails."""
    capsys.readouterr()
    assert run(*arguments) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("convert_vqkd: ") and stderr.endswith(".\n") and stderr.count("\n") == 1
    return stderr


def test_converted_directory_gives_the_originals_codes(checkpoint, tmp_path, golden, capsys):
    output = tmp_path / "deep" / "tokenizer"
    assert run(checkpoint, "--output", output) == 0
    assert "2 layers of width 128, 64 codes of dimension 32" in capsys.readouterr().out
    assert [entry.name for entry in output.parent.iterdir()] == ["tokenizer"]
    card = (output / "README.md").read_text()
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in card and "torch.rand(1, 3, 64, 64)" in card

    model, report = VqkdModel.from_pretrained(output, output_loading_info=True)
    assert not any(report.values())
    assert model.dtype == torch.float32
    for case in ("native", "interpolated"):
        with torch.no_grad():
            outputs = model(golden[f"vqkd.{case}.pixel_values_0_1"])
        assert torch.equal(outputs.codes, golden[f"vqkd.{case}.codes"])
        torch.testing.assert_close(outputs.features, golden[f"vqkd.{case}.features"], atol=1e-4, rtol=0)


def test_converted_directory_loads_where_the_package_is_missing(checkpoint, tmp_path, golden):
    run(checkpoint, "--output", tmp_path / "tokenizer")
    torch.save(golden["vqkd.native.pixel_values_0_1"], tmp_path / "images.pt")
    script = """
import sys
sys.modules["oneref_hf"] = None  # importing it now fails
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("tokenizer", trust_remote_code=True)
print(model.get_codebook_indices(torch.load("images.pt")).flatten().tolist())
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(golden["vqkd.native.codes"].flatten().tolist())


def test_checkpoint_inside_an_archive(checkpoint, tmp_path, golden):
    with zipfile.ZipFile(tmp_path / "release.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(checkpoint, "folder/vqkd.pth")
    assert run(f"{tmp_path / 'release.zip'}::folder/vqkd.pth", "--output", tmp_path / "out") == 0
    assert "release.zip::folder/vqkd.pth" in (tmp_path / "out" / "README.md").read_text()
    model = VqkdModel.from_pretrained(tmp_path / "out")
    codes = model.get_codebook_indices(golden["vqkd.native.pixel_values_0_1"])
    assert torch.equal(codes, golden["vqkd.native.codes"])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_types_are_kept_unless_asked(checkpoint, tmp_path, stored, dtype):
    original = {name: value.to(stored) for name, value in load_original(checkpoint)["model"].items()}
    torch.save({"model": original}, tmp_path / "checkpoint.pth")
    output, expected = tmp_path / "out", stored if dtype is None else getattr(torch, dtype)
    assert run(tmp_path / "checkpoint.pth", "--output", output, *(["--dtype", dtype] if dtype else [])) == 0
    report, weights = json.loads((output / "conversion_report.json").read_text()), load_file(output / SINGLE_FILE)
    assert report["dtype"] == str(expected).removeprefix("torch.")
    assert report["source"]["dtype"] == str(stored).removeprefix("torch.")
    name = "encoder.fc_norm.weight"
    assert weights["patch_norm.weight"].equal(original[name].to(expected))
    assert {weight.dtype for weight in weights.values()} == {expected}
    model = VqkdModel.from_pretrained(output, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_values_beyond_float16(changed_checkpoint, tmp_path, capsys):
    path = changed_checkpoint(**{"encoder.fc_norm.bias": torch.full((128,), 1e6)})
    message = refusal(capsys, path, "--output", tmp_path / "out", "--dtype", "float16")
    assert "patch_norm.bias has values that float16 cannot hold" in message


def test_report(checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(checkpoint, "--output", output) == 0
    printed = capsys.readouterr().out
    report = json.loads((output / "conversion_report.json").read_text())
    original, weights = load_original(checkpoint)["model"], load_file(output / SINGLE_FILE)
    assert set(report["mapped"]) == set(weights)
    mapped = {source for sources in report["mapped"].values() for source in sources}
    assert mapped | set(report["dropped"]) == set(original) and not mapped & set(report["dropped"])
    fused = "encoder.blocks.1.attn.qkv.weight"
    assert report["mapped"]["layers.1.attention.k_proj.weight"] == [fused]
    assert torch.equal(weights["layers.1.attention.k_proj.weight"], original[fused][128:256])
    assert report["dropped"]["quantize.cluster_size"] == "running count that moved the codes during training"
    assert set(report["dropped"].values()) == set(vqkd_keys.IGNORED.values())
    assert (report["model_class"], report["task"], report["image_size"]) == ("VqkdModel", "tokenizer", 64)
    assert (report["verified"], report["fresh"]) == (True, {}) and "compared with the source." in printed
    assert report["bytes"] == sum(weight.nbytes for weight in weights.values())
    assert report["source"]["file"] == checkpoint.name and str(tmp_path) not in json.dumps(report)
    assert report["source"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def rename_a_weight(path):
    path.write_bytes(path.read_bytes().replace(b'"patch_norm.bias"', b'"patch_norm.bies"', 1))


def break_header(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def other_sizes(path):
    config = path.with_name("config.json")
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip_a_bit, "What was written differs from the source in layers."),
        (rename_a_weight, "differs from the source in patch_norm.bias, patch_norm.bies."),
        (other_sizes, "differs from the source in layers.2."),
        (break_header, "cannot be written or read back"),
    ],
)
def test_verification_finds_what_was_written_wrongly(checkpoint, tmp_path, capsys, monkeypatch, spoil, message):
    save = VqkdModel.save_pretrained

    def spoilt(self, directory):
        save(self, directory)
        spoil(directory / SINGLE_FILE)

    monkeypatch.setattr(VqkdModel, "save_pretrained", spoilt)
    assert message in refusal(capsys, checkpoint, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if spoil is flip_a_bit:
        assert run(checkpoint, "--output", tmp_path / "out", "--no-verify") == 0
        assert "not compared." in capsys.readouterr().out
        assert json.loads((tmp_path / "out" / "conversion_report.json").read_text())["verified"] is False


@pytest.mark.parametrize(
    "arguments", [[], ["a.pth"], ["a.pth", "--name", "vqkd"], ["--name", "vqkd", "--dtype", "int8"]]
)
def test_wrong_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_every_row_of_the_tables_is_used_by_the_original(checkpoint):
    names = load_original(checkpoint)["model"].keys()
    assert vqkd_keys.unknown_names(names) == []
    targets = [vqkd_keys.rename(name) for name in names if vqkd_keys.rename(name)]
    assert len(targets) == len(set(targets))
    assert {target.replace(".0.", ".N.").replace(".1.", ".N.") for target in targets} == set(
        vqkd_keys.RENAMES.values()
    )
    reasons = {vqkd_keys.reason_to_ignore(name) for name in names} - {None}
    assert reasons == set(vqkd_keys.IGNORED.values())
    assert not [name for name in names if vqkd_keys.rename(name) and vqkd_keys.reason_to_ignore(name)]


def test_layers_keep_their_numbers():
    assert vqkd_keys.rename("encoder.blocks.11.attn.q_bias") == "layers.11.attention.q_proj.bias"
    assert vqkd_keys.rename("encoder.blocks.N.attn.q_bias.weight") is None


def test_sources_of_fused_and_other_tensors():
    names = ["encoder.blocks.2.attn.qkv.weight", "encoder.fc_norm.bias", "decoder.norm.bias"]
    assert vqkd_keys.sources_of(names) == {
        **{f"layers.2.attention.{part}_proj.weight": [names[0]] for part in "qkv"},
        "patch_norm.bias": [names[1]],
    }


def test_fused_qkv_is_cut_into_rows():
    weight = torch.arange(12.0).view(6, 2)
    parts = vqkd_keys.split_qkv({"layers.3.attention.qkv_proj.weight": weight, "other": weight})
    assert parts.pop("other") is weight
    assert {name: tensor.tolist() for name, tensor in parts.items()} == {
        "layers.3.attention.q_proj.weight": [[0, 1], [2, 3]],
        "layers.3.attention.k_proj.weight": [[4, 5], [6, 7]],
        "layers.3.attention.v_proj.weight": [[8, 9], [10, 11]],
    }


def test_position_table_loses_its_batch_dimension():
    name = "embeddings.position_embedding.weight"
    tensors = vqkd_keys.squeeze_positions({name: torch.ones(1, 5, 8), "embeddings.cls_token": torch.ones(1, 1, 8)})
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: (5, 8),
        "embeddings.cls_token": (1, 1, 8),
    }


def test_all_leftovers_are_listed_at_once(changed_checkpoint, tmp_path, capsys):
    path = changed_checkpoint(
        **{
            "encoder.mystery": torch.ones(1),
            "encoder.fc_norm.bias": None,
            "encoder.blocks.1.attn.qkv.weight": torch.ones(384, 64),
            "encoder.cls_token": torch.ones(1, 1, 128, dtype=torch.int64),
        }
    )
    message = refusal(capsys, path, "--output", tmp_path / "out")
    assert "no place in the model: encoder.mystery;" in message
    assert "missing: patch_norm.bias;" in message
    assert "layers.1.attention.k_proj.weight (128, 64) instead of (128, 128)" in message
    assert "not floating point: embeddings.cls_token" in message
    assert not (tmp_path / "out").exists()


def test_unknown_tensors_are_dropped_on_request_alone(changed_checkpoint, tmp_path, capsys):
    path = changed_checkpoint(**{"encoder.mystery": torch.ones(1)})
    assert "no place in the model: encoder.mystery" in refusal(capsys, path, "--output", tmp_path / "out")
    assert run(path, "--output", tmp_path / "out", "--allow-unused") == 0
    assert "unknown: encoder.mystery" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.pos_embed": torch.ones(1, 18, 128)}, "18 rows"),
        ({"encoder.pos_embed": torch.ones(1, 1, 128)}, "1 rows"),
        ({"encoder.pos_embed": torch.ones(17, 128)}, r"'encoder.pos_embed' has shape (17, 128)"),
        ({"quantize.embedding.weight": None}, "'quantize.embedding.weight' is missing"),
        ({"encoder.patch_embed.proj.weight": torch.ones(96, 3, 16, 16)}, "width 96"),
        ({"encoder.patch_embed.proj.weight": torch.ones(0, 3, 16, 16)}, "has shape (0, 3, 16, 16)"),
        ({"encoder.blocks.900000000.norm1.bias": torch.ones(128)}, "0, 1, 900000000"),
        ({"encoder.blocks.0.attn.qkv.weight": torch.ones(())}, "superfluous: layers.0.attention.qkv_proj.weight"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changed_checkpoint, tmp_path, capsys, changes, message):
    assert message in refusal(capsys, changed_checkpoint(**changes), "--output", tmp_path / "out")


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def write_bad_file(kind: str, path, original_checkpoint):
    if kind == "other_checkpoint":
        path.write_bytes(original_checkpoint("mrefm").read_bytes())
    elif kind == "truncated":
        path.write_bytes(original_checkpoint("vqkd").read_bytes()[:50_000])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "no_tensors":
        torch.save({"model": {"encoder.cls_token": 3}}, path)
    elif kind == "no_model":
        torch.save([1, 2], path)
    elif kind == "hostile":
        torch.save({"model": {}, "args": Hostile(path.with_name("victim"))}, path)


@pytest.mark.parametrize(
    "kind", ["missing", "other_checkpoint", "truncated", "text", "empty", "no_tensors", "no_model", "hostile"]
)
def test_bad_files_are_refused_in_one_sentence(kind, tmp_path, original_checkpoint, capsys):
    path = tmp_path / "bad.pth"
    write_bad_file(kind, path, original_checkpoint)
    refusal(capsys, path, "--output", tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} <= {"bad.pth"}


def test_existing_output_is_replaced_on_request_alone(checkpoint, changed_checkpoint, tmp_path, capsys):
    output = tmp_path / "tokenizer"
    run(checkpoint, "--output", output)
    before = (output / "model.safetensors").read_bytes()
    (output / "stale").touch()

    other = changed_checkpoint(**{"encoder.fc_norm.bias": torch.zeros(128)})
    assert "exists already" in refusal(capsys, other, "--output", output)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK")
    refusal(capsys, broken, "--output", output, "--overwrite")
    assert (output / "model.safetensors").read_bytes() == before

    assert run(other, "--output", output, "--overwrite") == 0
    assert (output / "model.safetensors").read_bytes() != before
    assert not (output / "stale").exists()


def test_only_an_earlier_conversion_is_overwritten(checkpoint, tmp_path, capsys):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "1.png").touch()
    assert "something else" in refusal(capsys, checkpoint, "--output", tmp_path / "photographs", "--overwrite")

    output = tmp_path / "tokenizer"
    run(checkpoint, "--output", output)
    inside = output / "original.pth"
    inside.write_bytes(checkpoint.read_bytes())
    assert "lies inside" in refusal(capsys, inside, "--output", output, "--overwrite")
    assert inside.exists()


def test_failed_writing_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    def fail(self, directory):
        (directory / "config.json").touch()
        raise OSError("No space left on device.")

    monkeypatch.setattr(VqkdModel, "save_pretrained", fail)
    assert "No space left" in refusal(capsys, checkpoint, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
