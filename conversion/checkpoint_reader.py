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
A stored member is read in place. A deflated one is inflated from the front, as far as the last weight asked for, and
the weights on the way are put in a temporary file that no crash can leave behind.
"""

import io
import logging
import math
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safe_pickle import BrokenPickleError, Global, Namespace, UnsafePickleError, read_pickle
from zip_stream import Entry, InflatingStream, NotStreamable


logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MAX_PICKLE_BYTES = 64 << 20  # the pickle of the largest released checkpoint has less than 1 MB
_BLOCK = 1 << 18  # bytes of a weight in memory at a time: they stay in the processor's cache
_MAX_STREAMED_PICKLE = 16 << 20  # its end is searched for
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

    def __init__(self, storages: "_Storages", label: str, max_pickle_bytes: int):
        self.label = label
        self._storages = storages
        self._sound: set[str] = set()  # storages whose checksum was found right
        with _naming(label):
            self.root = storages.load_root(max_pickle_bytes)

    def keep_only(self, refs: Iterable[TensorRef]) -> None:
        """Says that no other tensors will be asked for, so that no effort goes into them."""
        with _naming(self.label):
            self._storages.keep_only([ref.storage for ref in refs])

    def at_hand(self, ref: TensorRef) -> bool:
        """Whether reading a tensor takes no unpacking of what else may lie before it."""
        return self._storages.at_hand(ref.storage)

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
        with _naming(self.label), self._storages.open(ref.storage, skip) as stream:
            whole = size == ref.storage.nbytes and ref.storage.key not in self._sound
            expected = self._storages.checksum(ref.storage) if whole else None
            for start in range(0, size, _BLOCK):
                piece = view[: min(_BLOCK, size - start)]
                _fill(stream, piece)
                if expected is not None:
                    checksum = zlib.crc32(piece, checksum)
                yield buffer[: len(piece)].view(ref.dtype)
            if expected not in (None, checksum):
                raise CheckpointError(f"the checksum of storage {ref.storage.key[:20]!r} is wrong; download it again")
        if expected is not None:
            self._sound.add(ref.storage.key)


class _Storages:
    """A container format: where the pickle and the storages lie."""

    def load_root(self, max_pickle_bytes: int) -> Any:
        """The saved object; called once, first."""
        raise NotImplementedError

    def open(self, storage: StorageRef, skip: int) -> BinaryIO:
        """The storage's bytes after the first `skip`."""
        raise NotImplementedError

    def checksum(self, storage: StorageRef) -> int | None:
        """The CRC-32 that all bytes of an opened storage should have; `None` where there is nothing left to check."""
        return None

    def keep_only(self, storages: list[StorageRef]) -> None:
        """Says that no others will be opened."""

    def at_hand(self, storage: StorageRef) -> bool:
        """Whether opening takes no effort."""
        return True


def _storages_in(window: _Window, label: str) -> _Storages:
    """The container format of a file, by its first bytes."""
    head = window.read_at(0, 512)
    if head.startswith(b"PK"):
        return _ZipStorages(window)
    if head.startswith(_LEGACY_MAGIC):
        return _LegacyStorages(window)
    raise CheckpointError(f"{label} is {_wrong_kind(head)}.")


def _check_version(version: bytes) -> None:
    version = version.strip()
    if not version.isdigit() or not 1 <= int(version) <= 10:
        raise CheckpointError(f"its format version is {version[:20]!r}, and versions 1 to 10 are known")


def _check_byte_order(order: bytes) -> None:
    if order.strip() != b"little":
        raise CheckpointError("it was written on a big-endian machine; save it again on a little-endian one")


class _ZipStorages(_Storages):
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
        _check_version(self._small("version", b"3"))
        _check_byte_order(self._small("byteorder", b"little"))

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
        self._info(storage)
        return storage

    def _info(self, storage: StorageRef) -> zipfile.ZipInfo:
        info = self._archive.NameToInfo.get(f"{self._folder}data/{storage.key}")
        if info is None or info.file_size != storage.nbytes:
            found = "is missing" if info is None else f"has {info.file_size:,} bytes instead of {storage.nbytes:,}"
            raise BrokenPickleError(f"storage {storage.key[:20]!r} {found}")
        _check_compression(info)
        return info

    def open(self, storage: StorageRef, skip: int) -> BinaryIO:
        info = self._info(storage)
        if info.compress_type == zipfile.ZIP_STORED:  # without zipfile in between, which copies several times
            return self._window.part(_data_start(self._window, info) + skip, info.file_size - skip)
        stream = self._archive.open(info)
        stream.seek(skip)
        return stream

    def checksum(self, storage: StorageRef) -> int:
        return self._info(storage).CRC


class _LegacyStorages(_Storages):
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


class _InflatedStorages(_Storages):
    """The zip format inside a deflated member of another archive: inflated from the front, as far as is asked for.

    The storages on the way go to a temporary file. An archive with another layout than `torch.save` gives it, or with
    anything wrong in it, is unpacked whole, so that what can be read and what is said of the rest depend on its table
    of contents alone. What lies behind the last storage asked for, often the format's version, is not looked at.

    Args:
        archive, info: the other archive, and the member in it.
        label: of the member, for messages.
        scratch: folder for temporary files.
        stack: closes them, and thereby deletes them.
    """

    def __init__(self, archive: _Window, info: zipfile.ZipInfo, label: str, scratch: Path, stack: ExitStack):
        self._archive, self._info, self._label, self._scratch, self._stack = archive, info, label, scratch, stack
        self._passed = self._temporary_file()
        self._starts: dict[str, int] = {}  # of the storages in it
        self._coming: dict[str, StorageRef] = {}  # storages that were described and have not been passed
        self._kept: set[str] | None = None
        self._folder, self._others = "", 0
        self._unpacked: _Storages | None = None
        compressed = archive.part(_data_start(archive, info), info.compress_size)
        self._stream = stack.enter_context(closing(InflatingStream(compressed)))

    def load_root(self, max_pickle_bytes: int) -> Any:
        try:
            entry = self._stream.next_entry()
            if entry is None or not re.fullmatch(r"[^/]+/data\.pkl", entry.name):
                raise NotStreamable("it does not begin with its pickle")
            self._folder = entry.name.removesuffix("data.pkl")
            data = self._stream.read(entry, min(max_pickle_bytes, _MAX_STREAMED_PICKLE))
            root, _end = read_pickle(data, persistent_load=self._storage_of, extra_globals=_TORCH_GLOBALS)
            if sum(storage.nbytes for storage in self._coming.values()) > self._info.file_size:
                raise NotStreamable("its storages do not fit into it")
            return root
        except (NotStreamable, UnsafePickleError):
            return self._unpack(max_pickle_bytes)

    def _storage_of(self, pid) -> StorageRef:
        storage = _parse_storage(pid)
        if self._coming.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise NotStreamable("a storage has two sizes")
        return storage

    def _unpack(self, max_pickle_bytes: int = MAX_PICKLE_BYTES) -> Any:
        """Goes on with all of the member in a file; returns its root."""
        self._stream.close()
        self._check_room(self._info.file_size)
        gigabytes = self._info.file_size / 1e9
        logger.info("Unpacking %s (%.1f GB) to a temporary file in %s", self._label, gigabytes, self._scratch)
        file = self._temporary_file()
        # Stops at the announced size and checks the checksum.
        with zipfile.ZipFile(self._archive) as table, table.open(self._info) as contents:
            shutil.copyfileobj(contents, file, 1 << 20)
        self._unpacked = _storages_in(_Window(file, 0, file.tell()), self._label)
        return self._unpacked.load_root(max_pickle_bytes)

    def _temporary_file(self) -> BinaryIO:
        return self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._scratch).free
        if size > free:
            raise CheckpointError(f"unpacking takes {size:,} bytes, and '{self._scratch}' has room for {free:,}")

    def keep_only(self, storages: list[StorageRef]) -> None:
        sizes = {storage.key: storage.nbytes for storage in storages}
        if self._unpacked is None:
            self._check_room(sum(sizes.values()))
        self._kept = set(sizes)

    def at_hand(self, storage: StorageRef) -> bool:
        return self._unpacked is not None or storage.key in self._starts

    def open(self, storage: StorageRef, skip: int) -> BinaryIO:
        try:
            while not self.at_hand(storage):
                self._pass_entry()
        except (NotStreamable, CheckpointError):
            self._unpack()
        if self._unpacked is not None:
            return self._unpacked.open(storage, skip)
        return _Window(self._passed, self._starts[storage.key] + skip, storage.nbytes - skip)

    def _pass_entry(self) -> None:
        entry = self._stream.next_entry()
        if entry is None:
            raise NotStreamable("a storage is missing")
        name = entry.name.removeprefix(self._folder)
        storage = self._coming.pop(name.removeprefix("data/"), None) if name.startswith("data/") else None
        if storage is None:
            self._pass_other(name, entry)
        elif self._kept is None or storage.key in self._kept:
            start = self._passed.seek(0, io.SEEK_END)
            self._stream.copy(entry, storage.nbytes, self._passed.write)
            self._starts[storage.key] = start
        else:
            self._stream.skip(entry, storage.nbytes)

    def _pass_other(self, name: str, entry: Entry) -> None:
        """The few small entries that are no storages, of which there is no endless number."""
        self._others += 1
        contents = self._stream.read(entry, 1 << 10)
        if self._others > 20 or name == "constants.pkl":
            raise NotStreamable("it holds more than torch.save writes")
        if name == "version":
            _check_version(contents)
        if name == "byteorder":
            _check_byte_order(contents)

    def checksum(self, storage: StorageRef) -> int | None:
        return None if self._unpacked is None else self._unpacked.checksum(storage)


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


def _open_member(archive: _Window, member: str, label: str, scratch: Path, stack: ExitStack) -> _Storages:
    """A member, in place or inflated to temporary files that `stack` closes and thereby deletes."""
    with zipfile.ZipFile(archive) as table:
        info = table.getinfo(member)
    _check_compression(info)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return _InflatedStorages(archive, info, label, scratch, stack)
    return _storages_in(archive.part(_data_start(archive, info), info.file_size), label)


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
            if member is None:
                storages = _storages_in(window, label)
            else:
                storages = _open_member(window, member, label, scratch or path.parent, stack)
        yield TorchFile(storages, label, max_pickle_bytes)


# Checkpoints ------------------------------------------------------------------------------------------------------
class Checkpoint:
    """The weights of a training checkpoint and the few facts stored beside them.

    Attributes:
        tensors: weights by name, not yet read. The prefix `module.` of distributed training is taken off.
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
        self._beside = root if weights is not root else {}
        values = [self._beside.get(name) for name in ("epoch", "val_accu")]
        file.keep_only([*weights.values(), *(value for value in values if isinstance(value, TensorRef))])

    @property
    def facts(self) -> dict[str, Any]:
        """`epoch`, `val_accu` and `args`, as far as they are plain values.

        One that was saved as a tensor is left out while it lies further in a deflated archive than the weights read.
        """
        return _facts(self._beside, self._file)

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
        if isinstance(value, TensorRef) and value.numel == 1 and file.at_hand(value):
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
