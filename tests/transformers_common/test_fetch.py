# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Getting Transformers' tests: what is taken out of the archive, and what happens without a connection."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from transformers_common.fetch import CACHE_VARIABLE, MODULES, FetchError, extract


def archive_of(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def test_only_the_wanted_files_are_taken_out(tmp_path):
    wanted = [f"transformers-1.0/tests/{name}" for name in MODULES]
    archive = archive_of(tmp_path / "a.tar.gz", ["../escaped.py", "/tmp/escaped.py", "transformers-1.0/x.py", *wanted])
    (tmp_path / "inner").mkdir()
    extract(archive, "1.0", tmp_path / "inner" / "tests")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py"))
    assert found == sorted(f"inner/tests/{name}" for name in ("__init__.py", *MODULES))
    assert (tmp_path / "inner" / "tests" / MODULES[0]).read_text() == wanted[0]


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(FetchError, match="does not hold the test modules"):
        extract(archive_of(tmp_path / "a.tar.gz", ["transformers-1.0/tests/other.py"]), "1.0", tmp_path / "tests")


def test_without_a_connection_the_run_fails_with_one_sentence(tmp_path, pytestconfig):
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path), "PIP_NO_INDEX": "1"}
    script = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fetch.py"))], env=environment, capture_output=True, text=True
    )
    assert script.returncode == 1
    assert len(script.stderr.splitlines()) == 1 and "pip could not download" in script.stderr
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_modeling_vqkd_common.py"))]
    run = subprocess.run(command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "1 failed" in run.stdout and script.stderr.strip() in run.stdout and "Traceback" not in run.stdout
