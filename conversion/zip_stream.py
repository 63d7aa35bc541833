# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads a zip archive from front to back while the archive around it is being inflated.

    stream = InflatingStream(compressed)
    while (entry := stream.next_entry()) is not None:
        stream.copy(entry, size, write)      # or `skip`, where the size of the contents is known, else `read`
    stream.close()

The table of contents of a zip archive lies at its end, out of reach here, so entries are found by their local headers.
`torch.save` leaves sizes and checksums out of those and writes them behind the contents. An archive that is unusual in
any other way raises `NotStreamable`: it may still be read by its table of contents once it is unpacked.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO


_CHUNK = 1 << 18  # bytes inflated at a time
_CHUNKS_AHEAD = 64  # 16 MB

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_FOOTERS = (struct.Struct("<4sLLL"), struct.Struct("<4sLQQ"))  # the second beyond 4 GB
_FOOTER_MAGIC = b"PK\x07\x08"
_IN_FOOTER = 1 << 3  # flag: checksum and size follow the contents
_HARMLESS = 1 << 1 | 1 << 2 | 1 << 11  # flags: two hints about compression, one about the name


class NotStreamable(ValueError):
    """The archive is damaged, or not laid out as `torch.save` does it."""


@dataclass(frozen=True)
class Entry:
    """A file in the archive. Size and checksum are `None` where they follow the contents."""

    name: str
    size: int | None
    checksum: int | None


class InflatingStream:
    """The zip archive that raw deflate data unpacks to. A thread inflates ahead of the reader.

    Args:
        compressed: the deflate data; nobody else may use it before `close`.
    """

    def __init__(self, compressed: BinaryIO):
        self._compressed = compressed
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ahead: deque[Future[bytes]] = deque()
        self._buffer, self._position = b"", 0

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def next_entry(self) -> Entry | None:
        """The entry that begins here; `None` behind the last one."""
        if self._peek(4) and self._buffer.startswith((b"PK\x01\x02", b"PK\x05\x06"), self._position):
            return None
        magic, _, flags, method, _, _, checksum, stored, size, name_length, extra_length = _LOCAL_HEADER.unpack(
            self._take(_LOCAL_HEADER.size)
        )
        if magic != b"PK\x03\x04" or method != 0 or flags & ~(_HARMLESS | _IN_FOOTER):
            raise NotStreamable("an entry is compressed, encrypted or not where the one before it ends")
        name = self._take(name_length).decode("utf-8", "replace")
        self._take(extra_length)
        if flags & _IN_FOOTER:
            return Entry(name, None, None)
        if stored != size or size == 0xFFFFFFFF:
            raise NotStreamable(f"the size of {name[:80]!r} is not where torch.save writes it")
        return Entry(name, size, checksum)

    def read(self, entry: Entry, most: int) -> bytes:
        """The contents of an entry, of at most `most` bytes, checked."""
        size = self._find_footer(most) if entry.size is None else entry.size
        if size > most:
            raise NotStreamable(f"{entry.name[:80]!r} has more than {most:,} bytes")
        contents = bytearray()
        self.copy(entry, size, contents.extend)
        return bytes(contents)

    def copy(self, entry: Entry, size: int, write: Callable[[memoryview], object]) -> None:
        """Hands the contents of an entry of `size` bytes on in pieces, and checks them at the end."""
        checksum = 0
        for piece in self._pieces(entry, size):
            checksum = zlib.crc32(piece, checksum)
            write(piece)
        if checksum != self._end(entry, size):
            raise NotStreamable(f"the checksum of {entry.name[:80]!r} is wrong")

    def skip(self, entry: Entry, size: int) -> None:
        """Passes over an entry of `size` bytes."""
        for _ in self._pieces(entry, size):
            pass
        self._end(entry, size)

    # Entries ------------------------------------------------------------------------------------------------------
    def _pieces(self, entry: Entry, size: int) -> Iterator[memoryview]:
        if entry.size not in (None, size):
            raise NotStreamable(f"{entry.name[:80]!r} has {entry.size:,} bytes instead of {size:,}")
        while size:
            if not self._peek(1):
                raise NotStreamable("it is truncated")
            piece = memoryview(self._buffer)[self._position : self._position + size]
            self._position += len(piece)
            size -= len(piece)
            yield piece

    def _end(self, entry: Entry, size: int) -> int:
        """Passes over what follows the contents of an entry; returns their checksum."""
        if entry.checksum is not None:
            return entry.checksum
        found = self._footer_at(0, size)
        if found is None and size:
            raise NotStreamable(f"{entry.name[:80]!r} does not end where it should")
        checksum, length = found or (0, 0)  # torch.save gives empty entries none
        self._position += length
        return checksum

    def _footer_at(self, offset: int, size: int) -> tuple[int, int] | None:
        """Checksum and length of the footer that lies `offset` bytes ahead, if it is that of `size` bytes."""
        for layout in _FOOTERS:
            if self._peek(offset + layout.size):
                magic, checksum, *sizes = layout.unpack_from(self._buffer, self._position + offset)
                if magic == _FOOTER_MAGIC and sizes == [size, size]:
                    return checksum, layout.size
        return None

    def _find_footer(self, most: int) -> int:
        """How many bytes ahead the first footer lies that fits them."""
        size = 0
        while size <= most and self._peek(size + len(_FOOTER_MAGIC)):
            place = self._buffer.find(_FOOTER_MAGIC, self._position + size)
            if place < 0:
                size = len(self._buffer) - self._position - len(_FOOTER_MAGIC) + 1
            else:
                size = place - self._position
                if self._footer_at(size, size):
                    return size
                size += 1
        raise NotStreamable("an entry does not end")

    # Bytes --------------------------------------------------------------------------------------------------------
    def _take(self, size: int) -> bytes:
        if not self._peek(size):
            raise NotStreamable("it is truncated")
        self._position += size
        return self._buffer[self._position - size : self._position]

    def _peek(self, size: int) -> bool:
        """Fills the buffer up to `size` bytes ahead; says whether there are so many."""
        while len(self._buffer) - self._position < size:
            while len(self._ahead) < _CHUNKS_AHEAD:
                self._ahead.append(self._thread.submit(self._inflate))
            try:
                chunk = self._ahead.popleft().result()
            except zlib.error as error:
                raise NotStreamable(str(error)) from error
            if not chunk:
                return False
            self._buffer, self._position = self._buffer[self._position :] + chunk, 0
        return True

    def _inflate(self) -> bytes:
        """The next bytes, none at the end. This runs in the thread."""
        while not self._inflater.eof:
            compressed = self._inflater.unconsumed_tail or self._compressed.read(_CHUNK)
            inflated = self._inflater.decompress(compressed, _CHUNK)
            if inflated:
                return inflated
            if not compressed:
                break
        return b""
