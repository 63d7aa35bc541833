# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the weights out of PyTorch files without running them and without loading the rest.

    with open_checkpoint("best_checkpoint.pth") as checkpoint:
        for name, ref in checkpoint.tensors.items():      # shapes and types are known before any weight is read
            tensor = checkpoint.read(name)                 # one tensor at a time, or
            for values in checkpoint.blocks(name): ...     # a small piece of one at a time

A file by `torch.save` is a pickle that describes tensors plus the bytes of each storage. The pickle is read by
`safe_pickle`, which yields descriptions (`TensorRef`); the bytes of a storage are read when asked for, so optimizer
state, two thirds of a training checkpoint, never enters memory. Both container formats are known (the zip of PyTorch
1.6 and later, and the one before), on their own or as a member of a zip archive: `open_checkpoint(path, member)`.
A stored member is read in place, a deflated one inflated to a temporary file that no crash can leave behind.
"""

import io
import logging
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safe_pickle import BrokenPickleError, Global, Namespace, UnsafePickleError, read_pickle


logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MAX_PICKLE_BYTES = 64 << 20  # the pickle of the largest released checkpoint has less than 1 MB
_BLOCK = 1 << 18  # bytes of a weight in memory at a time: they stay in the processor's cache
_MAX_READ = 32 << 20  # no table of contents of an honest archive is larger

# Where the weights lie in the dictionary of a checkpoint, in the order in which the original's loader looks.
CONTAINER_KEYS = ("model", "module")


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint; the message says what it is or where it is broken."""


class UnsafeCheckpointError(CheckpointError):
    """A file that asks to run code. None of it was run."""


# What a pickle of tensors names -----------------------------------------------------------------------------------
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StorageRef:
    """A run of `numel` values under a key of the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorRef:
    """A tensor that was described but not read. Offset and strides count values, as in PyTorch."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        step = 1
        for side, stride in zip(reversed(self.shape), reversed(self.stride)):
            if side != 1 and stride != step:
                return False
            step *= side
        return True

    @property
    def span(self) -> int:
        """Number of values from the first to the last one used."""
        return 1 + sum((side - 1) * step for side, step in zip(self.shape, self.stride)) if self.numel else 0


def _tensor_ref(storage, offset, shape, stride, *_flags) -> TensorRef:
    numbers = (offset, *shape, *stride)
    if (
        not isinstance(storage, StorageRef)
        or len(shape) != len(stride)
        or len(shape) > 16
        or not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    ):
        raise BrokenPickleError("a tensor is described in a way that makes no sense")
    ref = TensorRef(storage, offset, tuple(shape), tuple(stride))
    # More values than the storage holds would be the claim of a file that unpacks to something absurd.
    if ref.numel > storage.numel or offset + ref.span > storage.numel:
        raise BrokenPickleError(f"a tensor of shape {ref.shape} does not fit its storage of {storage.numel} values")
    return ref


_TORCH_GLOBALS = {
    ("torch._utils", "_rebuild_tensor"): _tensor_ref,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_ref,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): lambda sides=(): tuple(sides),
    ("torch", "device"): lambda *names: ":".join(str(name) for name in names if isinstance(name, (str, int))),
    **{("torch", name): None for name in _STORAGE_DTYPES},
    **{("torch", name): None for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "bool")},
}


# Files, parts of files --------------------------------------------------------------------------------------------
class _Window(io.RawIOBase):
    """The bytes `start` to `start + size` of a file, as a file of its own. Whoever opened the file closes it."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self.size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("an offset lies before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view) if len(view) else 0
        self._position += count
        return count

    def read(self, size: int = -1) -> bytes:
        size = max(0, self.size - self._position) if size is None or size < 0 else size
        if size > _MAX_READ:
            raise CheckpointError("its table of contents is absurdly large")
        return super().read(size)

    def read_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes, for callers that have bounded it."""
        buffer = bytearray(max(0, min(size, self.size - position)))
        self.seek(position)
        _fill(self, memoryview(buffer))
        return bytes(buffer)

    def part(self, start: int, size: int) -> "_Window":
        return _Window(self._file, self._start + start, size)


def _fill(stream, view: memoryview) -> None:
    """Reads exactly `len(view)` bytes."""
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise CheckpointError("it is truncated")
        done += count


@contextmanager
def _naming(label: str) -> Iterator[None]:
    """Puts the file's name before whatever goes wrong with its contents."""
    try:
        yield
    except BrokenPickleError as error:
        raise CheckpointError(f"{label} cannot be read: {error}.") from error
    except UnsafePickleError as error:
        raise UnsafeCheckpointError(f"{label} is refused: {error}.") from error
    except CheckpointError as error:
        if str(error).startswith(label):
            raise
        raise type(error)(f"{label} cannot be read: {error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise CheckpointError(f"{label} is damaged or truncated ({error}); download it again.") from error
    except (NotImplementedError, RuntimeError, UnicodeError, ValueError, OverflowError) as error:
        # What zipfile raises for encryption, unknown compression and impossible header fields.
        raise CheckpointError(f"{label} cannot be read: {error}.") from error


# Kinds of files ---------------------------------------------------------------------------------------------------
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_OTHER_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull` or an hf:// source"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, not a PyTorch checkpoint"),
    (b"\x93NUMPY", "a NumPy array, not a PyTorch checkpoint"),
    (b"GGUF", "a GGUF file, not a PyTorch checkpoint"),
)


def _wrong_kind(head: bytes) -> str:
    """What a file is that is no PyTorch file, from its first bytes."""
    if not head:
        return "empty"
    for magic, name in _OTHER_KINDS:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive, perhaps a PyTorch file older than version 0.2; save it again with a newer one"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return "a safetensors file; only the original PyTorch checkpoints need conversion"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, probably saved in place of the download"
    if head[:1] == b"\x80":
        return "a bare pickle, not a file written by torch.save"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 or byte >= 128 for byte in head[:256]):
        return "a text file, not a PyTorch checkpoint"
    return "of an unknown kind, not a PyTorch checkpoint"


class TorchFile:
    """A file by `torch.save`. `root` is the saved object with `TensorRef` in place of tensors.

    Containers in `root` are plain; see `safe_pickle.loads` for what other types may occur.
    """

    def __init__(self, window: _Window, label: str, max_pickle_bytes: int = MAX_PICKLE_BYTES):
        self.label = label
        self._sound: set[str] = set()  # storages whose checksum was found right
        with _naming(label):
            head = window.read_at(0, 512)
            if head.startswith(b"PK"):
                self._storages = _ZipStorages(window)
            elif head.startswith(_LEGACY_MAGIC):
                self._storages = _LegacyStorages(window)
            else:
                raise CheckpointError(f"{label} is {_wrong_kind(head)}.")
            self.root = self._storages.load_root(max_pickle_bytes)

    def read(self, ref: TensorRef) -> torch.Tensor:
        """The values of a tensor, contiguous, on the CPU. Raises `CheckpointError` where the file is damaged."""
        values, done = torch.empty(ref.span, dtype=ref.dtype), 0
        for block in self._stored_values(ref):
            values[done : done + len(block)] = block
            done += len(block)
        return values.as_strided(ref.shape, ref.stride).contiguous()

    def blocks(self, ref: TensorRef) -> Iterator[torch.Tensor]:
        """The values of a tensor in order, as flat pieces; each is valid until the next is asked for."""
        if ref.is_contiguous:
            yield from self._stored_values(ref)
        else:
            yield self.read(ref).reshape(-1)

    def _stored_values(self, ref: TensorRef) -> Iterator[torch.Tensor]:
        """What lies between the first and the last value of a tensor, in pieces that share their memory."""
        size, skip = ref.span * ref.dtype.itemsize, ref.offset * ref.dtype.itemsize
        # The buffer is PyTorch's own, so that values of every type can be seen in it.
        buffer = torch.empty(min(size, _BLOCK), dtype=torch.uint8)
        view, checksum = memoryview(buffer.numpy()), 0
        unchecked = size == ref.storage.nbytes and ref.storage.key not in self._sound
        with _naming(self.label), self._storages.open(ref.storage, skip) as stream:
            for start in range(0, size, _BLOCK):
                piece = view[: min(_BLOCK, size - start)]
                _fill(stream, piece)
                if unchecked:
                    checksum = zlib.crc32(piece, checksum)
                yield buffer[: len(piece)].view(ref.dtype)
            if unchecked and checksum != self._storages.checksum(ref.storage, checksum):
                raise CheckpointError(f"the checksum of storage {ref.storage.key[:20]!r} is wrong; download it again")
        if unchecked:
            self._sound.add(ref.storage.key)


class _ZipStorages:
    """The format since PyTorch 1.6: a zip with `data.pkl` and one entry per storage."""

    def __init__(self, window: _Window):
        self._window = window
        self._archive = zipfile.ZipFile(window)
        pickles = [name for name in self._archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError("it is a zip archive, but not one written by torch.save")
        self._folder = pickles[0].removesuffix("data.pkl")
        if self._folder + "constants.pkl" in self._archive.NameToInfo:
            raise CheckpointError("it is a TorchScript program, not a checkpoint")
        version = self._small("version", b"3").strip()
        if not version.isdigit() or not 1 <= int(version) <= 10:
            raise CheckpointError(f"its format version is {version[:20]!r}, and versions 1 to 10 are known")
        if self._small("byteorder", b"little").strip() != b"little":
            raise CheckpointError("it was written on a big-endian machine; save it again on a little-endian one")

    def _small(self, name: str, default: bytes) -> bytes:
        info = self._archive.NameToInfo.get(self._folder + name)
        if info is None:
            return default
        with self._archive.open(info) as stream:
            return stream.read(64)

    def load_root(self, max_pickle_bytes: int) -> Any:
        info = self._archive.getinfo(self._folder + "data.pkl")
        if info.file_size > max_pickle_bytes:
            raise CheckpointError(f"its pickle claims {info.file_size:,} bytes, more than {max_pickle_bytes:,}")
        _check_compression(info)
        with self._archive.open(info) as stream:
            data = b"".join(iter(lambda: stream.read(_BLOCK), b""))
        root, _end = read_pickle(data, persistent_load=self._storage_of, extra_globals=_TORCH_GLOBALS)
        return root

    def _storage_of(self, pid) -> StorageRef:
        storage = _parse_storage(pid)
        info = self._archive.NameToInfo.get(f"{self._folder}data/{storage.key}")
        if info is None or info.file_size != storage.nbytes:
            found = "is missing" if info is None else f"has {info.file_size:,} bytes instead of {storage.nbytes:,}"
            raise BrokenPickleError(f"storage {storage.key[:20]!r} {found}")
        _check_compression(info)
        return storage

    def open(self, storage: StorageRef, skip: int) -> BinaryIO:
        """The storage's bytes after the first `skip`."""
        info = self._archive.getinfo(f"{self._folder}data/{storage.key}")
        if info.compress_type == zipfile.ZIP_STORED:  # without zipfile in between, which copies several times
            return self._window.part(_data_start(self._window, info) + skip, info.file_size - skip)
        stream = self._archive.open(info)
        stream.seek(skip)
        return stream

    def checksum(self, storage: StorageRef, computed: int) -> int:
        """The CRC-32 that all bytes of the storage should have."""
        return self._archive.getinfo(f"{self._folder}data/{storage.key}").CRC


class _LegacyStorages:
    """The format before PyTorch 1.6: five pickles in a row, then the storages, each after its length."""

    def __init__(self, window: _Window):
        self._window = window
        self._starts: dict[str, int] = {}

    def load_root(self, max_pickle_bytes: int) -> Any:
        storages: dict[str, StorageRef] = {}

        def storage_of(pid) -> StorageRef:
            if type(pid) is tuple and len(pid) == 6 and pid[5] is not None:
                raise BrokenPickleError("it was written before PyTorch 0.4; save it again with a newer version")
            storage = _parse_storage(pid[:5] if type(pid) is tuple else pid)
            return storages.setdefault(storage.key, storage)

        data = self._window.read_at(0, max_pickle_bytes)
        _magic, position = read_pickle(data, 0)
        version, position = read_pickle(data, position)
        if type(version) is not int or version != 1001:
            raise CheckpointError("its format version is not 1001, the only one known")
        system, position = read_pickle(data, position)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError("it was written on a big-endian machine; save it again on a little-endian one")
        root, position = read_pickle(data, position, persistent_load=storage_of, extra_globals=_TORCH_GLOBALS)
        keys, position = read_pickle(data, position)
        if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(storages) != sorted(keys):
            raise CheckpointError("its list of storages does not match its tensors")
        for key in keys:
            storage = storages[key]
            numel = int.from_bytes(self._window.read_at(position, 8), "little", signed=True)
            self._starts[key] = position + 8
            position += 8 + storage.nbytes
            if numel != storage.numel or position > self._window.size:
                raise CheckpointError(f"storage {key[:20]!r} is truncated or has another length than announced")
        return root

    def open(self, storage: StorageRef, skip: int) -> BinaryIO:
        return self._window.part(self._starts[storage.key] + skip, storage.nbytes - skip)

    def checksum(self, storage: StorageRef, computed: int) -> int:
        return computed  # the format has none


def _parse_storage(pid) -> StorageRef:
    if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
        raise BrokenPickleError("it refers to something other than the storage of a tensor")
    _tag, kind, key, _device, numel = pid
    dtype = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or type(key) is not str or type(numel) is not int or not 0 <= numel < 2**48:
        raise BrokenPickleError("a storage is described in a way that makes no sense")
    return StorageRef(key, dtype, numel)


def _check_compression(info: zipfile.ZipInfo) -> None:
    """Only what torch.save and ordinary archivers write, and no more than deflate can unpack to (1032 : 1)."""
    if info.flag_bits & 1:
        raise BrokenPickleError("it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BrokenPickleError(f"{info.filename[:80]!r} is compressed with method {info.compress_type}, not deflate")
    most = info.compress_size if info.compress_type == zipfile.ZIP_STORED else 1032 * info.compress_size + 4096
    if info.file_size > most:
        raise BrokenPickleError(f"{info.filename[:80]!r} claims to unpack to an impossible {info.file_size:,} bytes")


# Archives around checkpoints --------------------------------------------------------------------------------------
def _data_start(window: _Window, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin; its local header has lengths of its own."""
    header = window.read_at(info.header_offset, 30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError("an entry of the archive is not where its table of contents says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.compress_size > window.size:
        raise CheckpointError("it is truncated")
    return start


def list_members(path: str | Path) -> list[str] | None:
    """Names of the checkpoints inside an archive of checkpoints; `None` for a file that is not one."""
    with _naming(f"'{path}'"), open(path, "rb") as file:
        if file.read(2) != b"PK":
            return None
        with zipfile.ZipFile(_Window(file, 0, file.seek(0, io.SEEK_END))) as archive:
            names = archive.namelist()
    if any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
        return None
    return [name for name in names if name.endswith(CHECKPOINT_SUFFIXES) and not name.startswith("__MACOSX/")]


def _choose_member(path: Path, member: str | None) -> str | None:
    members = list_members(path)
    if members is None:
        if member is not None:
            raise CheckpointError(f"'{path}' is not an archive of checkpoints, so it has no member {member!r}.")
        return None
    if not members:
        raise CheckpointError(
            f"'{path}' is a zip archive without checkpoints ({', '.join(CHECKPOINT_SUFFIXES)}) inside."
        )
    listing = ", ".join(members[:50])
    if member is None and len(members) > 1:
        raise CheckpointError(
            f"'{path}' holds several checkpoints; choose one as '{path.name}::MEMBER' from: {listing}."
        )
    if member is not None and member not in members:
        raise CheckpointError(f"'{path}' has no member {member!r}; it holds: {listing}.")
    return member or members[0]


def _open_member(whole: _Window, member: str, scratch: Path, stack: ExitStack) -> _Window:
    """The bytes of a member, in place or unpacked to a temporary file that `stack` closes and thereby deletes."""
    with zipfile.ZipFile(whole) as archive:
        info = archive.getinfo(member)
        _check_compression(info)
        if info.compress_type == zipfile.ZIP_STORED:
            return whole.part(_data_start(whole, info), info.file_size)
        free = shutil.disk_usage(scratch).free
        if info.file_size > free:
            raise CheckpointError(f"unpacking takes {info.file_size:,} bytes, and '{scratch}' has room for {free:,}")
        logger.info("Unpacking %s (%.1f GB) to a temporary file in %s", member, info.file_size / 1e9, scratch)
        file = stack.enter_context(tempfile.TemporaryFile(dir=scratch, buffering=0))  # noqa: SIM115
        with archive.open(info) as stream:  # stops at the announced size and checks the checksum
            shutil.copyfileobj(stream, file, 1 << 20)
        return _Window(file, 0, file.tell())


@contextmanager
def open_torch_file(
    path: str | Path,
    member: str | None = None,
    *,
    scratch: Path | None = None,
    max_pickle_bytes: int = MAX_PICKLE_BYTES,
) -> Iterator[TorchFile]:
    """Opens anything written by `torch.save`.

    Args:
        path: the file, or a zip archive of such files.
        member: which of the archive's files; may be left out where there is only one.
        scratch: folder for the temporary file that a deflated member needs; by default the archive's.
        max_pickle_bytes: largest pickle to accept, not counting the tensors.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file asks to run code; nothing was run.
        CheckpointError: anything else that is wrong with it, in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not a file." if path.exists() else f"There is no file '{path}'.")
    member = _choose_member(path, member)
    label = f"'{path}'" if member is None else f"'{path}::{member}'"
    with ExitStack() as stack:
        with _naming(label):
            file = stack.enter_context(open(path, "rb", buffering=0))
            window = _Window(file, 0, file.seek(0, io.SEEK_END))
            if member is not None:
                window = _open_member(window, member, scratch or path.parent, stack)
        yield TorchFile(window, label, max_pickle_bytes)


# Checkpoints ------------------------------------------------------------------------------------------------------
class Checkpoint:
    """The weights of a training checkpoint and the few facts stored beside them.

    Attributes:
        tensors: weights by name, not yet read. The prefix `module.` of distributed training is taken off.
        facts: `epoch`, `val_accu` and `args`, as far as they are plain values.
    """

    def __init__(self, file: TorchFile):
        self._file = file
        root, label = file.root, file.label
        if not isinstance(root, dict):
            raise CheckpointError(f"{label} holds a {type(root).__name__} instead of a dictionary of weights.")
        weights = next((root[key] for key in CONTAINER_KEYS if isinstance(root.get(key), dict)), root)
        odd = [
            str(name)[:60]
            for name, value in weights.items()
            if type(name) is not str or not isinstance(value, TensorRef)
        ]
        if odd or not weights:
            raise CheckpointError(
                f"{label} is not a checkpoint of weights: "
                + (f"{', '.join(odd[:5])} is not a named tensor." if odd else "it holds none.")
            )
        if all(name.startswith("module.") for name in weights):
            weights = {name.removeprefix("module."): ref for name, ref in weights.items()}
        self.tensors: dict[str, TensorRef] = dict(weights)
        self.facts = _facts(root, file) if weights is not root else {}

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, contiguous, on the CPU."""
        return self._file.read(self.tensors[name])

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The values of that tensor in order, as flat pieces; each is valid until the next is asked for."""
        return self._file.blocks(self.tensors[name])


def _facts(root: dict, file: TorchFile) -> dict[str, Any]:
    arguments = root.get("args")
    facts = {"epoch": root.get("epoch"), "val_accu": root.get("val_accu")}
    for name, value in facts.items():
        if isinstance(value, TensorRef) and value.numel == 1:
            facts[name] = file.read(value).item()
    if isinstance(arguments, Namespace):
        facts["args"] = {name: value for name, value in vars(arguments).items() if _is_plain(value)}
    return {name: value for name, value in facts.items() if name == "args" or (value is not None and _is_plain(value))}


def _is_plain(value) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, float) or (isinstance(value, str) and len(value) < 1000)


@contextmanager
def open_checkpoint(path: str | Path, member: str | None = None, *, scratch: Path | None = None):
    """A `Checkpoint`, open for reading; arguments and errors as in `open_torch_file`."""
    with open_torch_file(path, member, scratch=scratch) as file:
        yield Checkpoint(file)
