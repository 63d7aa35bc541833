# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Puts the common tests of the installed Transformers version into a cache and prints the folder.

    python tests/transformers_common/fetch.py

The source distribution comes from whatever package index pip is configured for. The cache is `.cache/` at the
repository root, or the folder that the environment variable ONEREF_TEST_CACHE names.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock


MODULES = (
    "test_configuration_common.py",
    "test_image_processing_common.py",
    "test_modeling_common.py",
    "test_processing_common.py",
)
CACHE_VARIABLE = "ONEREF_TEST_CACHE"
DOWNLOAD_SECONDS = 600  # 11 MB, and pip builds the package's metadata


class FetchError(Exception):
    """The tests could not be obtained; the message is one sentence for the person who runs them."""


def cache_root() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path(__file__).parents[2] / ".cache").absolute()


def fetch() -> Path:
    """
    Returns the folder that holds `MODULES` of the installed Transformers version, downloading them if need be.

    Raises:
        FetchError: if they are not cached and cannot be downloaded.
    """
    release = version("transformers")
    root = cache_root()
    folder = root / f"transformers-{release}-tests"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(root / f"{folder.name}.lock"),  # parallel test workers start at the same moment
            tempfile.TemporaryDirectory(dir=root) as scratch,
        ):
            if not folder.is_dir():
                extract(download(release, Path(scratch)), release, Path(scratch) / "tests")
                os.replace(Path(scratch) / "tests", folder)
    except OSError as error:
        raise FetchError(
            f"The cache {root} cannot be written ({error}); choose another one with {CACHE_VARIABLE}."
        ) from error
    return folder


def download(release: str, folder: Path) -> Path:
    """Downloads the source distribution of a Transformers release with pip and returns the archive."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={release}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        complaint = (done.stderr.strip().splitlines() or [f"pip returned {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        complaint = f"no answer within {DOWNLOAD_SECONDS} seconds"
    archives = list(folder.glob("transformers-*.tar.gz"))
    if len(archives) != 1:
        raise FetchError(
            f"Transformers' own tests are not in {cache_root()} and pip could not download the source distribution of "
            f"transformers {release} ({complaint}); check the connection and pip's configuration, then run "
            "`python tests/transformers_common/fetch.py`."
        )
    return archives[0]


def extract(archive: Path, release: str, folder: Path):
    """Copies the contents of `MODULES`, found by their exact names in the archive, into a new folder."""
    folder.mkdir()
    # Transformers looks for a package's `__init__.py` beside its configuration tests.
    (folder / "__init__.py").touch()
    try:
        with tarfile.open(archive) as tar:
            for name in MODULES:
                # Read, not extracted: nothing in the archive chooses where it is written.
                (folder / name).write_bytes(tar.extractfile(f"transformers-{release}/tests/{name}").read())
    except (KeyError, AttributeError, tarfile.TarError, EOFError) as error:
        raise FetchError(
            f"The source distribution of transformers {release} does not hold the test modules in the expected place: "
            f"{error}."
        ) from error


if __name__ == "__main__":
    try:
        print(fetch())
    except FetchError as error:
        sys.exit(str(error))
