# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Damaged and hostile checkpoints, five hundred for each reader: an answer or one sentence, and nothing else happens.

Bytes are flipped, files cut, and opcodes of the pickle swapped (with the archive's checksums made right again, so that
the change reaches the pickle reader). Each file has to be done with within ten seconds, may execute nothing, and
leaves no output unless its conversion succeeds. Fixed seeds make failures repeatable; the message names the case.
"""

import contextlib
import io
import os
import pickle
import pickletools
import random
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import convert_oneref
import convert_vqkd
import pytest
import torch
from checkpoint_reader import CheckpointError, open_checkpoint
from oneref_keys import assignments_of
from safe_pickle import UnsafePickleError, loads
from vqkd_keys import IGNORED, RENAMES


CASES = 500
SECONDS = 10
PICKLE = "pickle"  # in the name of cases whose pickle was mutated and given the right checksum
MEMBER = "unc/best_checkpoint.pth"


class OutOfTime(BaseException):
    """Not an error that a reader could turn into a sentence."""


class Hostile:
    """A pickle of this would create the marker, if anything executed it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def smallest_state() -> dict[str, torch.Tensor]:
    """Weights of the smallest REC model there is: one layer of width 64."""
    sizes = {"text_embed": (8, 64), "cls_token": (1, 1, 64), "mask_token": (1, 1, 64), "logit_scale": ()}
    sizes |= {"vision_embed.proj.weight": (64, 3, 2, 2), "embed_positions.A": (4, 64), "embed_positions.B": (5, 64)}
    sizes |= {"fc1.weight": (16, 64), "fc2.weight": (64, 16), "fc1.bias": (16,), "ffn_layernorm": (16,)}
    sizes |= {"layers.2.weight": (4, 64), "layers.2.bias": (4,)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in [source for sources in assignments_of("grounding", 1).values() for source in sources]:
        norm_or_bias = name.endswith(".bias") or "norm" in name or "_ln." in name
        shape = next((size for part, size in sizes.items() if part in name), (64,) if norm_or_bias else (64, 64))
        state[name] = torch.randn(shape, generator=generator)
    return state


def smallest_tokenizer() -> dict[str, torch.Tensor]:
    """Weights of the smallest VQ-KD tokenizer: one layer of width 64, and one tensor of each kind that is dropped."""
    sizes = {"cls_token": (1, 1, 64), "pos_embed": (1, 2, 64), "patch_embed.proj.weight": (64, 3, 2, 2)}
    sizes |= {"qkv": (192, 64), "fc1.weight": (16, 64), "fc2.weight": (64, 16), "fc1.bias": (16,)}
    sizes |= {"layer.2.weight": (4, 64), "layer.2.bias": (4,), "embedding.weight": (8, 4)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in [*(name.replace(".N.", ".0.") for name in RENAMES), *IGNORED]:
        norm_or_bias = name.endswith("bias") or "norm" in name
        shape = next((size for part, size in sizes.items() if part in name), (64,) if norm_or_bias else (64, 64))
        state[name] = torch.randn((3,) if name in IGNORED else shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def marker(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("marker") / "executed"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, marker) -> dict[str, bytes]:
    return in_every_format(smallest_state(), tmp_path_factory.mktemp("fuzz"), marker)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, marker) -> dict[str, bytes]:
    return in_every_format(smallest_tokenizer(), tmp_path_factory.mktemp("fuzz"), marker)


def in_every_format(state: dict[str, torch.Tensor], folder: Path, marker: Path) -> dict[str, bytes]:
    """A small checkpoint in every format the reader knows, and one with a hostile object beside the weights."""
    saved = {"model": state, "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 3, "val_accu": 0.5}
    torch.save(saved, folder / "zip.pth")
    torch.save({**saved, "args": Hostile(marker)}, folder / "hostile.pth")
    torch.save(saved, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    files = {path.stem: path.read_bytes() for path in folder.iterdir()}
    return {
        **files,
        "stored": archived(files["zip"], zipfile.ZIP_STORED),
        "deflated": archived(files["zip"], zipfile.ZIP_DEFLATED),
    }


def archived(data: bytes, compression: int) -> bytes:
    """An archive with a checkpoint in it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression, compresslevel=1) as archive:
        archive.writestr(MEMBER, data)
    return target.getvalue()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A copy with flipped bytes, cut short, with a part overwritten, or with a part repeated."""
    kind, changed = draw.randrange(4), bytearray(data)
    # The interesting structure lies at both ends: headers and pickle first, table of contents last.
    window = draw.choice([(0, min(len(data), 4000)), (max(0, len(data) - 12000), len(data)), (0, len(data))])
    at = draw.randrange(*window)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(*window)] = draw.randrange(256)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        length = draw.choice([1, 2, 4, 8])
        changed[at : at + length] = draw.choice([b"\x00", b"\xff", b"\x7f"]) * length
    else:
        changed[at:at] = changed[at : at + draw.randint(1, 64)]
    return bytes(changed)


def with_swapped_opcodes(data: bytes, draw: random.Random) -> bytes:
    """A pickle in which one opcode has become another, or two have changed places."""
    places = [position for _, _, position in pickletools.genops(data)]
    changed = bytearray(data)
    first, second = draw.choice(places), draw.choice(places)
    if draw.random() < 0.5:
        changed[first], changed[second] = changed[second], changed[first]
    else:
        changed[first] = ord(draw.choice(pickletools.opcodes).code)
    return bytes(changed)


def with_pickle(archive: bytes, draw: random.Random) -> bytes:
    """A checkpoint whose pickle was mutated, in a zip archive that is right in every other way."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/data.pkl"):
                data = draw.choice([with_swapped_opcodes, mutated])(data, draw)
            new.writestr(name, data)
    return target.getvalue()


@contextlib.contextmanager
def within_seconds(case: str) -> Iterator[None]:
    def out_of_time(*_):
        raise OutOfTime(f"{case} took more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def mutations(checkpoint: dict[str, bytes], name: str, seed: int) -> Iterator[tuple[str, bytes]]:
    """Of `inflated`, what is mutated lies inside a deflated member that is sound in itself."""
    draw = random.Random(seed)
    source = checkpoint["zip" if name == "inflated" else name]
    for case in range(CASES):
        changed, what = mutated(source, draw), "case"
        if name in ("zip", "hostile", "inflated") and case % 2:
            changed, what = with_pickle(source, draw), PICKLE
        if name == "inflated":
            changed = archived(changed, zipfile.ZIP_DEFLATED)
        yield f"{name}, {what} {case} of seed {seed}", changed


@pytest.mark.parametrize("name", ["zip", "hostile", "legacy", "stored", "deflated", "inflated"])
def test_the_reader_of_checkpoints(tmp_path, checkpoint, marker, name):
    path = tmp_path / "checkpoint.pth"
    outcomes = {"read": 0, "refused": 0}
    sound = [value.numpy().tobytes() for value in smallest_state().values()]
    for case, data in mutations(checkpoint, name, seed=1):
        path.write_bytes(data)
        try:
            with within_seconds(case), open_checkpoint(path) as opened:
                values = [opened.read(name) for name in opened.tensors]
                assert [value.shape for value in values] == [ref.shape for ref in opened.tensors.values()]
            if name != "legacy" and PICKLE not in case:  # where all that is read has a checksum
                assert [value.numpy().tobytes() for value in values] == sound, case
            outcomes["read"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, case
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{case} ended in {type(error).__name__}") from error
    assert not marker.exists()
    assert list(tmp_path.iterdir()) == [path]
    assert outcomes["refused"] > CASES / 4  # the mutations did reach the reader


@pytest.mark.parametrize("name", ["zip", "hostile", "legacy", "deflated", "inflated"])
def test_the_converter(tmp_path, checkpoint, marker, capsys, name):
    cases = list(mutations(checkpoint, name, seed=2))[: CASES // 4]
    assert_converted_or_refused(convert_oneref.main, ["--no-tokenizer"], checkpoint["zip"], cases, tmp_path, capsys)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["zip", "hostile", "inflated"])
def test_the_converter_of_the_visual_tokenizer(tmp_path, tokenizer, marker, capsys, name):
    """Fewer, as the reader is the same; `hostile` is refused unless the mutation took the hostile object away."""
    cases = list(mutations(tokenizer, name, seed=3))[: CASES // 5]
    assert_converted_or_refused(convert_vqkd.main, [], tokenizer["zip"], cases, tmp_path, capsys)
    assert not marker.exists()


def assert_converted_or_refused(main, options: list[str], sound: bytes, cases, tmp_path: Path, capsys) -> None:
    """Success leaves a complete directory, failure none; never more than one sentence on standard error."""
    path, output = tmp_path / "checkpoint.pth", tmp_path / "out"
    path.write_bytes(sound)
    arguments = [str(path), "--output", str(output), "--overwrite", *options]
    assert main(arguments) == 0  # else the mutations of it would prove nothing
    complete = sorted(entry.name for entry in output.iterdir())
    outcomes = {0: 0, 1: 0}
    for case, data in cases:
        path.write_bytes(data)
        for entry in output.iterdir() if output.exists() else ():
            entry.unlink()
        if output.exists():
            output.rmdir()
        capsys.readouterr()
        with within_seconds(case):
            code = main(arguments)
        outcomes[code] += 1
        assert capsys.readouterr().err.count("\n") <= (1 if code else 0), case
        assert sorted(tmp_path.iterdir()) == [path] if code else complete == sorted(x.name for x in output.iterdir())
    assert outcomes[1] > len(cases) / 4


def test_the_reader_of_pickles(checkpoint, marker):
    """Every opcode at every place of a small pickle that also holds a call."""
    for protocol in (0, 2, 4):
        data = pickle.dumps([{"a": (1, 2.5), "b": [None, "x"]}, Hostile(marker)], protocol)
        for _, _, place in pickletools.genops(data):
            for opcode in pickletools.opcodes:
                changed = bytearray(data)
                changed[place] = ord(opcode.code)
                with contextlib.suppress(UnsafePickleError):
                    loads(bytes(changed), extra_globals={("posix", "mkdir"): None})
    assert not marker.exists()
