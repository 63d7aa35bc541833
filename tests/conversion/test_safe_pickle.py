# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The pickle reader gives what Python's gives for plain data, and runs nothing."""

import argparse
import collections
import os
import pickle

import numpy as np
import pytest
from safe_pickle import BrokenPickleError, Namespace, UnsafePickleError, loads, read_pickle


PLAIN = [
    [None, True, False, 0, -1, 255, 65536, 2**40, -(2**70), 1.5, -0.0, float("inf")],
    ["", "red cup", "naïve ☕ \n'\"", "x" * 70000, b"", b"\x00\xff", b"y" * 300],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], list(range(3000))],
    {"a": {"b": [1, (2, {3: 4})]}, 5: "five", b"k": None, True: 0},
    [{1, 2}, frozenset(["a"]), collections.OrderedDict([("z", 1), ("a", 2)]), collections.Counter("aab")],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_as_from_pythons_reader(protocol):
    for value in PLAIN:
        read = loads(pickle.dumps(value, protocol))
        assert read == value
        assert type(read) is type(value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_and_namespace(protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = {"score": np.float64(0.5), "count": np.int32(7), "boxes": array, "args": argparse.Namespace(lr=1.0)}
    read = loads(pickle.dumps(value, protocol))
    assert (read["score"], read["count"]) == (0.5, 7)
    assert read["boxes"].dtype == array.dtype and np.array_equal(read["boxes"], array)
    assert isinstance(read["args"], Namespace) and vars(read["args"]) == {"lr": 1.0}


def test_python2_strings_and_shared_references():
    assert loads(b"U\x02\xc3\xa9.") == "é"
    assert loads(b"U\x01\xe9.") == "é"  # not UTF-8, hence Latin-1
    shared = loads(pickle.dumps([part := [1], part], 2))
    assert shared[0] is shared[1]


def test_several_pickles_in_a_row():
    data = pickle.dumps("first", 2) + pickle.dumps(2, 2)
    first, end = read_pickle(data)
    assert (first, read_pickle(data, end)) == ("first", (2, len(data)))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"a": [bad]}, lambda bad: argparse.Namespace(x=bad)])
def test_nothing_is_executed(tmp_path, protocol, wrap):
    marker = tmp_path / "executed"
    for function, arguments in [(os.system, (f"touch {marker}",)), (eval, (f"open({str(marker)!r}, 'w')",))]:
        with pytest.raises(UnsafePickleError) as caught:
            loads(pickle.dumps(wrap(Hostile(function, *arguments)), max(protocol, 2)))
        assert function.__name__ in str(caught.value) and "executed" in str(caught.value)
    assert not marker.exists()


def test_allowed_classes_cannot_be_called_or_altered():
    with pytest.raises(UnsafePickleError, match=r"call builtins\.list"):
        loads(b"cbuiltins\nlist\n)R.")
    for state_on in (b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"]", b"}"):
        with pytest.raises(BrokenPickleError, match="sets the state"):
            loads(state_on + b"}b.")


def test_additional_globals():
    data = pickle.dumps(collections.deque([1, 2], 5), 2)
    with pytest.raises(UnsafePickleError, match=r"collections\.deque"):
        loads(data)
    read = loads(data, extra_globals={("collections", "deque"): lambda items=(), length=None: []})
    assert read == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"]", "truncated"),
        (b"X\xff\xff\xff\xffabc.", "truncated"),
        (b"]].", "stops early"),
        (b"h\x05.", "damaged"),
        (b"\xff.", "unknown opcode"),
        (b"\x80\x09N.", "protocol 9"),
        (b"K\x01a.", "damaged"),
        (b"}]K\x01s.", "as a dictionary key"),
        (b"}(K\x01d.", "no value"),
        (b"I" + b"9" * 1000 + b"\n.", "long number"),
        (b"Np99999999999\n.", "memo index"),
        (b"Vid\nQ.", "persistent id"),
    ],
)
def test_malformed_bytes_are_one_sentence(data, message):
    with pytest.raises(BrokenPickleError, match=message):
        loads(data)


def test_keys_that_would_take_for_ever_to_hash():
    """Forty nested pairs are a key whose hash takes 2^40 steps."""
    nested = b")" + b"2\x86" * 40
    with pytest.raises(BrokenPickleError, match="as a dictionary key"):
        loads(b"}" + nested + b"Ns.")
    colliding = {(2**61 - 1) * factor: None for factor in range(1, 3)}  # integers with one and the same hash
    with pytest.raises(BrokenPickleError, match="as a dictionary key"):
        loads(pickle.dumps(colliding, 2))


def test_array_that_claims_more_than_it_holds():
    data = pickle.dumps(np.zeros(4, dtype=np.int64), 2)
    assert loads(data).shape == (4,)
    with pytest.raises(BrokenPickleError, match="damaged NumPy array"):
        loads(data.replace(b"K\x04\x85", b"M\xff\xff\x85"))
    with pytest.raises(BrokenPickleError, match="NumPy type"):
        loads(pickle.dumps(np.array([object()]), 2))
