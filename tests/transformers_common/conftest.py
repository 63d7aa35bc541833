# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Gets Transformers' tests before this folder is collected. Without them each file is one failing test, not a skip."""

import functools

import pytest

from transformers_common.fetch import FetchError, fetch


MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by Transformers' own tests")


@functools.cache
def _complaint() -> str | None:
    try:
        fetch()
    except FetchError as error:
        return str(error)
    return None


class _MissingTests(pytest.File):
    def collect(self):
        yield _Complaint.from_parent(self, name="transformers_own_tests")


class _Complaint(pytest.Item):
    def runtest(self):
        pytest.fail(_complaint(), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path, parent):
    return _MissingTests.from_parent(parent, path=module_path) if _complaint() else None
