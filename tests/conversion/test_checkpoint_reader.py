# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Weights come out of every container as PyTorch reads them; everything else is one clear sentence."""

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_reader import CheckpointError, UnsafeCheckpointError, list_members, open_checkpoint, open_torch_file


WEIGHTS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "double": torch.tensor([1.5, -2.5], dtype=torch.float64),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "nothing": torch.empty(0, 3),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "row": torch.arange(12.0).reshape(3, 4)[1],
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


def read_all(path: Path, member: str | None = None) -> dict[str, torch.Tensor]:
    with open_checkpoint(path, member) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def assert_same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and read[name].is_contiguous()
        assert torch.equal(read[name], tensor.detach()), name


def trusted(path: Path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def zipped(path: Path, compression: int, **members: Path) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for folder, file in members.items():
            archive.write(file, f"{folder}/best_checkpoint.pth")
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a checkpoint's zip with other entries; `change(name inside the top folder, bytes)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name.split("/", 1)[1], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


# What is read -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mrefm", "rec", "res", "beit3", "vqkd"])
def test_every_kind_of_checkpoint(original_checkpoint, kind):
    path = original_checkpoint(kind)
    assert_same(read_all(path), trusted(path)["model"])


def test_facts_beside_the_weights(original_checkpoint):
    with open_checkpoint(original_checkpoint("res")) as checkpoint:
        assert checkpoint.facts["epoch"] == 19
        assert checkpoint.facts["val_accu"] == pytest.approx(0.7757)  # a tensor in the file
        assert checkpoint.facts["args"]["dataset"] == "unc"


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("container", ["model", "module", "plain", "ordered", "distributed"])
def test_types_views_and_containers(tmp_path, zip_format, container):
    saved = {
        "model": {"model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "module": {"module": WEIGHTS},
        "plain": WEIGHTS,
        "ordered": {"model": OrderedDict(WEIGHTS)},
        "distributed": {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    }[container]
    path = tmp_path / "checkpoint.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zip_format)
    assert_same(read_all(path), WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        for name, expected in WEIGHTS.items():
            blocks = [block.clone() for block in checkpoint.blocks(name)]
            assert torch.equal(torch.cat([torch.empty(0, dtype=expected.dtype), *blocks]), expected.detach().flatten())


def test_long_weights_come_in_short_blocks(tmp_path):
    values = torch.arange(300_001, dtype=torch.float32)
    torch.save({"whole": values, "part": values[7:299_990]}, tmp_path / "checkpoint.pth")
    with open_checkpoint(tmp_path / "checkpoint.pth") as checkpoint:
        for name, expected in (("whole", values), ("part", values[7:299_990])):
            blocks = [block.clone() for block in checkpoint.blocks(name)]
            assert len(blocks) > 3 and torch.equal(torch.cat(blocks), expected)


def test_state_dict_of_a_module(tmp_path):
    """Its `_metadata` attribute is pickled too."""
    module = torch.nn.BatchNorm1d(3)
    torch.save({"model": module.state_dict()}, tmp_path / "checkpoint.pth")
    assert_same(read_all(tmp_path / "checkpoint.pth"), module.state_dict())


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_archives(tmp_path, compression, zip_format):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=zip_format)
    archive = zipped(tmp_path / "release.zip", compression, unc=path, other=path)
    before = sorted(tmp_path.iterdir())
    assert list_members(archive) == ["unc/best_checkpoint.pth", "other/best_checkpoint.pth"]
    assert_same(read_all(archive, "other/best_checkpoint.pth"), WEIGHTS)
    assert sorted(tmp_path.iterdir()) == before  # nothing unpacked stays


def test_which_member(tmp_path, original_checkpoint):
    path = original_checkpoint("rec")
    several = zipped(tmp_path / "several.zip", zipfile.ZIP_STORED, unc=path, flickr=path)
    single = zipped(tmp_path / "single.zip", zipfile.ZIP_STORED, mixup=path)
    assert_same(read_all(single), trusted(path)["model"])
    for member, start in [(None, "holds several"), ("../x.pth", "has no member '../x.pth'")]:
        with pytest.raises(CheckpointError, match=start) as caught:
            read_all(several, member)
        assert "unc/best_checkpoint.pth, flickr/best_checkpoint.pth" in str(caught.value)
    with pytest.raises(CheckpointError, match="not an archive of checkpoints"):
        read_all(path, "unc/best_checkpoint.pth")


def test_a_checkpoint_zipped_again_by_hand(tmp_path):
    """An archiver that unpacked and deflated a checkpoint's own entries does no harm."""
    path, again = tmp_path / "checkpoint.pth", tmp_path / "again.pth"
    torch.save({"model": WEIGHTS}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read_all(again), WEIGHTS)


def test_optimizer_state_is_never_read(tmp_path):
    """Its bytes are spoilt, which goes unnoticed; those of a weight are not."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"w": torch.full((64,), 3.0)}, "optimizer": {"m": torch.full((64,), 5.0)}}, path)
    data = path.read_bytes()
    for value, noticed in [(5.0, False), (3.0, True)]:
        run = torch.full((64,), value).numpy().tobytes()
        assert data.count(run) == 1
        path.write_bytes(data.replace(run, run[:-1] + b"\x00"))
        if noticed:
            with pytest.raises(CheckpointError, match="checksum"):
                read_all(path)
        else:
            assert torch.equal(read_all(path)["w"], torch.full((64,), 3.0))


# Deflated members ---------------------------------------------------------------------------------------------------
@pytest.fixture
def unpackings(caplog) -> Callable[[], int]:
    """How many members were unpacked whole so far."""
    caplog.set_level("INFO", "checkpoint_reader")
    return lambda: sum("Unpacking" in record.message for record in caplog.records)


def deflated(path: Path) -> Path:
    return zipped(path.with_suffix(".zip"), zipfile.ZIP_DEFLATED, unc=path)


def random(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("order", "streamed"),
    [
        ("as written", True),
        ("as text", True),  # that of PyTorch before 2.7: 0, 1, 10, 11, 2, ...
        ("backwards", True),
        ("pickle last", False),
        ("deflated again", False),
    ],
)
def test_layouts_of_deflated_members(tmp_path, unpackings, order, streamed):
    weights = {**WEIGHTS, **{f"extra{number}": random(9, number) for number in range(9)}}
    torch.save({"model": weights, "optimizer": {"m": torch.ones(7)}}, tmp_path / "checkpoint.pth")
    path = tmp_path / "checkpoint.pth"
    if order != "as written":
        path = tmp_path / "other.pth"
        compression = zipfile.ZIP_DEFLATED if order == "deflated again" else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "checkpoint.pth") as old, zipfile.ZipFile(path, "w", compression) as new:
            pickle_name, *names = old.namelist()
            if order != "deflated again":
                names.sort(reverse=order == "backwards")
            for name in [*names, pickle_name] if order == "pickle last" else [pickle_name, *names]:
                new.writestr(name, old.read(name))
    archive = deflated(path)
    before = sorted(tmp_path.iterdir())
    assert_same(read_all(archive), weights)
    assert unpackings() == (0 if streamed else 1)
    with open_checkpoint(archive) as checkpoint:  # not in their order in the file, and more than once
        for name in [*reversed(weights), *weights]:
            assert torch.equal(checkpoint.read(name), weights[name].detach())
    assert sorted(tmp_path.iterdir()) == before


def test_what_lies_behind_the_weights_is_not_inflated(tmp_path, unpackings):
    """The end of the compressed member is spoilt, which goes unnoticed; the middle, where the weights are, is not."""
    weights = {"w": random(20_000, 0)}
    torch.save({"model": weights, "optimizer": {"m": random(200_000, 1)}}, tmp_path / "checkpoint.pth")
    path = deflated(tmp_path / "checkpoint.pth")
    data = bytearray(path.read_bytes())
    data[-200_000:-100_000] = bytes(100_000)
    path.write_bytes(data)
    assert_same(read_all(path), weights)
    assert unpackings() == 0
    data[40_000:40_100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="download it again"):
        read_all(path)


@pytest.mark.parametrize(("first", "expected"), [("val_accu", 0.5), ("model", None)])
def test_a_fact_that_lies_behind_the_weights_is_left_out(tmp_path, unpackings, first, expected):
    saved = {"val_accu": torch.tensor(0.5), "model": {"w": random(10, 0)}, "epoch": 3}
    torch.save({first: saved[first], **saved}, tmp_path / "checkpoint.pth")
    with open_checkpoint(deflated(tmp_path / "checkpoint.pth")) as checkpoint:
        checkpoint.read("w")
        assert (checkpoint.facts["epoch"], checkpoint.facts.get("val_accu")) == (3, expected)
    assert unpackings() == 0


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        ("byteorder", b"big", "big-endian"),
        (".format_version", bytes(2000), None),  # longer than any such entry
        ("data/0", b"", "has 0 bytes instead of"),
        ("data/8", None, "is missing"),
    ],
)
def test_entries_of_deflated_members_that_do_not_fit(tmp_path, unpackings, entry, data, message):
    torch.save({"model": WEIGHTS}, tmp_path / "checkpoint.pth")
    path = rewritten(tmp_path / "checkpoint.pth", tmp_path / "b.pth", lambda n, old: data if n == entry else old)
    archive = deflated(path)
    if message is None:
        assert_same(read_all(archive), WEIGHTS)
    else:
        with pytest.raises(CheckpointError, match=message):
            read_all(archive)
    assert unpackings() == 1  # it is the table of contents that decides


def test_wrong_checksums_in_deflated_members(tmp_path):
    torch.save({"model": {"w": random(1000, 0)}, "optimizer": {"m": random(1000, 1)}}, tmp_path / "checkpoint.pth")
    data = bytearray((tmp_path / "checkpoint.pth").read_bytes())
    data[data.index(random(1000, 0).numpy().tobytes()) + 5] ^= 1
    (tmp_path / "checkpoint.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum of storage '0' is wrong"):
        read_all(deflated(tmp_path / "checkpoint.pth"))


def test_storages_of_deflated_members_that_claim_too_much(tmp_path):
    """The pickle alone says how much to read, before the storages are reached."""
    torch.save({"model": {"w": torch.arange(6.0)}}, tmp_path / "checkpoint.pth")

    def enlarge(name: str, data: bytes) -> bytes:
        assert name != "data.pkl" or data.count(b"K\x06") == 2
        return data.replace(b"K\x06", b"J\xff\xff\xff\x7f") if name == "data.pkl" else data

    archive = deflated(rewritten(tmp_path / "checkpoint.pth", tmp_path / "b.pth", enlarge))
    with pytest.raises(CheckpointError, match="has 24 bytes instead of 8,589,934,588"):
        read_all(archive)


def test_no_room_for_the_weights(tmp_path, monkeypatch):
    torch.save({"model": {"w": torch.arange(6.0)}}, tmp_path / "checkpoint.pth")
    monkeypatch.setattr("checkpoint_reader.shutil.disk_usage", lambda path: argparse.Namespace(free=23))
    with pytest.raises(CheckpointError, match=r"unpacking takes 24 bytes, and .* has room for 23"):
        read_all(deflated(tmp_path / "checkpoint.pth"))


# What is refused --------------------------------------------------------------------------------------------------
class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("place", ["model", "args", "optimizer", "root"])
def test_hostile_files_execute_nothing(tmp_path, zip_format, place):
    marker, path = tmp_path / "executed", tmp_path / "checkpoint.pth"
    hostile = Hostile(os.system, f"touch {marker}")
    saved = hostile if place == "root" else {"model": dict(WEIGHTS), place: {"w": hostile}}
    torch.save(saved, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UnsafeCheckpointError, match=r"system.*nothing in it was executed") as caught:
        read_all(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


def test_pickled_tensor_loaders_are_no_way_around(tmp_path):
    """`torch.storage._load_from_bytes` unpickles bytes of its own: a name from torch is not a harmless name."""
    inner = io.BytesIO()
    torch.save({"a": 1}, inner)
    torch.save({"model": Hostile(torch.storage._load_from_bytes, inner.getvalue())}, tmp_path / "checkpoint.pth")
    with pytest.raises(UnsafeCheckpointError, match="_load_from_bytes"):
        read_all(tmp_path / "checkpoint.pth")


WRONG_KINDS = {
    "empty": (b"", "is empty"),
    "page": (b"\n<!DOCTYPE html><html><head>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "text": (b"unc/best_checkpoint.pth\n", "a text file"),
    "safetensors": ((64).to_bytes(8, "little") + b'{"w":{"dtype":"F32"', "a safetensors file"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(50), "a gzip archive"),
    "tar": (bytes(257) + b"ustar\x00" + bytes(300), "a tar archive"),
    "pickle": (pickle.dumps({"model": {}}, 2), "a bare pickle"),
    "noise": (bytes(range(255, 0, -1)), "of an unknown kind"),
}


@pytest.mark.parametrize("kind", list(WRONG_KINDS))
def test_wrong_kinds_are_named(tmp_path, kind):
    data, name = WRONG_KINDS[kind]
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        read_all(path)


def test_zip_archives_without_checkpoints(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"")
    with pytest.raises(CheckpointError, match="zip archive without checkpoints"):
        read_all(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pth", b"<html>")
    with pytest.raises(CheckpointError, match=r"photos\.zip::a\.pth' is a web page"):
        read_all(path)


@pytest.mark.parametrize("missing", ["nowhere.pth", "."])
def test_missing_file(tmp_path, missing):
    with pytest.raises(FileNotFoundError, match="file"):
        read_all(tmp_path / missing)


@pytest.mark.parametrize("zip_format", [True, False])
def test_truncated_files(tmp_path, zip_format):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=zip_format)
    data = path.read_bytes()
    for length in {*range(1, len(data), len(data) // 40), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            read_all(path)
        assert str(caught.value).startswith(f"'{path}' ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        ("version", b"99\n", "format version"),
        ("byteorder", b"big", "big-endian"),
        ("data/0", b"", "has 0 bytes instead of"),
        ("data/0", None, "is missing"),
        ("data.pkl", b"]", "truncated"),
        ("data.pkl", b"].", "holds a list"),
        ("data.pkl", pickle.dumps({"model": {"w": 1}}, 2), "w is not a named tensor"),
        ("data.pkl", pickle.dumps({"model": {}}, 2), "holds none"),
    ],
)
def test_entries_that_do_not_fit(tmp_path, entry, data, message):
    torch.save({"model": WEIGHTS}, tmp_path / "checkpoint.pth")
    path = rewritten(tmp_path / "checkpoint.pth", tmp_path / "b.pth", lambda n, old: data if n == entry else old)
    with pytest.raises(CheckpointError, match=message):
        read_all(path)


@pytest.mark.parametrize("old_shape", [b"K\x02K\x03\x86", b"K\x03K\x01\x86"])
def test_tensors_that_claim_more_than_their_storage(tmp_path, old_shape):
    """The shape (2, 3) or the strides (3, 1) made larger."""
    torch.save({"model": {"w": torch.arange(6.0).reshape(2, 3)}}, tmp_path / "checkpoint.pth")

    def enlarge(name: str, data: bytes) -> bytes:
        assert name != "data.pkl" or old_shape in data
        return data.replace(old_shape, b"K\x63K\x63\x86") if name == "data.pkl" else data

    with pytest.raises(CheckpointError, match="does not fit its storage"):
        read_all(rewritten(tmp_path / "checkpoint.pth", tmp_path / "b.pth", enlarge))


def test_claims_of_absurd_sizes(tmp_path):
    """The table of contents says that 100 deflated bytes unpack to 4 GB."""
    path = tmp_path / "release.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pth", bytes(100_000))
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = b"\xf0\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="claims to unpack to an impossible"):
        read_all(path)


def test_pickles_larger_than_expected(tmp_path):
    torch.save(["x" * 1000], tmp_path / "file.pth")
    with (
        pytest.raises(CheckpointError, match="pickle claims"),
        open_torch_file(tmp_path / "file.pth", max_pickle_bytes=500),
    ):
        pass


def test_other_torch_files_can_be_read(tmp_path):
    torch.save([("a.jpg", [1.0, 2.0]), torch.arange(3)], tmp_path / "file.pth")
    with open_torch_file(tmp_path / "file.pth") as file:
        record, ref = file.root
        assert record == ("a.jpg", [1.0, 2.0])
        assert file.read(ref).tolist() == [0, 1, 2]
