# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Zip entries are found from the front, whatever their headers leave out, and nothing unusual passes for an entry."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from zip_stream import InflatingStream, NotStreamable


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


@contextmanager
def streaming(data: bytes) -> Iterator[InflatingStream]:
    with closing(InflatingStream(io.BytesIO(deflated(data)))) as stream:
        yield stream


def header(name: bytes, flags=0x808, method=0, checksum=0, size=0, extra: bytes = b"") -> bytes:
    fields = (b"PK\x03\x04", 20, flags, method, 0, 0, checksum, size, size, len(name), len(extra))
    return struct.pack("<4s5H3L2H", *fields) + name + extra


def entry(name: bytes, contents: bytes, footer: str = "<4sLLL") -> bytes:
    """An entry as torch.save writes it: padded, with size and checksum behind the contents."""
    size = len(contents)
    end = struct.pack(footer, b"PK\x07\x08", zlib.crc32(contents), size, size)
    return header(name, extra=b"FB\x03\x00ZZZ") + contents + end


END = b"PK\x01\x02" + bytes(42)
LONG = bytes(range(256)) * 4000  # several of the stream's chunks


@pytest.mark.parametrize("footer", ["<4sLLL", "<4sLQQ"])
def test_entries_with_footers(footer):
    hidden = b"PK\x07\x08" + struct.pack("<LLL", 7, 7, 7) + b"PK\x01\x02PK\x03\x04"  # is no footer of 0 bytes
    data = entry(b"a", hidden, footer) + entry(b"b", LONG, footer) + entry(b"c", LONG, footer) + END
    with streaming(data) as stream:
        first = stream.next_entry()
        assert (first.name, first.size) == ("a", None) and stream.read(first, 1000) == hidden
        stream.skip(stream.next_entry(), len(LONG))
        copied = bytearray()
        stream.copy(stream.next_entry(), len(LONG), copied.extend)
        assert copied == LONG
        assert stream.next_entry() is None


def test_long_entries_of_unknown_length():
    with streaming(entry(b"a", LONG) + END) as stream:
        assert stream.read(stream.next_entry(), len(LONG)) == LONG
    with streaming(entry(b"a", LONG) + END) as stream, pytest.raises(NotStreamable, match="more than"):
        stream.read(stream.next_entry(), len(LONG) - 1)


def test_empty_entries():
    """`torch.save` announces a footer and writes none."""
    empty = header(b"empty")
    with streaming(empty + entry(b"a", b"x") + empty + END) as stream:
        stream.copy(stream.next_entry(), 0, None)
        assert stream.read(stream.next_entry(), 10) == b"x"
        stream.skip(stream.next_entry(), 0)
        assert stream.next_entry() is None


def test_entries_of_ordinary_archives():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", LONG)
        archive.writestr("b", b"")
    with streaming(file.getvalue()) as stream:
        first = stream.next_entry()
        assert (first.name, first.size, first.checksum) == ("a", len(LONG), zlib.crc32(LONG))
        assert stream.read(first, len(LONG)) == LONG
        assert stream.read(stream.next_entry(), 10) == b""
        assert stream.next_entry() is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        b"\x80\x02.",
        header(b"a", method=8) + b"x",
        header(b"a", flags=0x809) + b"x",
        header(b"a", flags=0, size=0xFFFFFFFF) + b"x",
        header(b"a" * 60000)[:1000],
        header(b"a", flags=0, size=4) + b"xxx",  # truncated
        header(b"a", flags=0, size=4, checksum=1) + b"xxxx" + END,  # not its checksum
        header(b"a", flags=0, size=3) + b"xxxx" + END,  # another size than asked for
        header(b"a") + b"xxxx" + END,  # no footer
        header(b"a") + b"xxxx" + struct.pack("<4sLLL", b"PK\x07\x08", zlib.crc32(b"xxxx"), 4, 5) + END,
        entry(b"a", b"yyyy").replace(b"yyyy", b"xxxx") + END,
        entry(b"a", b"xxx") + END,
    ],
)
def test_what_is_no_entry(data):
    """Neither of four bytes, nor of a few."""
    with streaming(data) as stream, pytest.raises(NotStreamable):
        stream.copy(stream.next_entry(), 4, lambda piece: None)
    with streaming(data) as stream, pytest.raises(NotStreamable):
        stream.read(stream.next_entry(), 2)


@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_damaged_compression(length):
    """Data that end early, and data that are none."""
    compressed = deflated(entry(b"a", LONG))
    damaged = compressed[:length] if length else b"\xff" * 100
    with closing(InflatingStream(io.BytesIO(damaged))) as stream, pytest.raises(NotStreamable):
        stream.copy(stream.next_entry(), len(LONG), lambda piece: None)
        stream.next_entry()
