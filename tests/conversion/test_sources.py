# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are found on disk, in archives, by released name and on a Hub, here a local server with its protocol."""

import functools
import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import sources
from hub_server import COMMIT, Hub, HubRequest
from manifest import load_manifest
from sources import SourceError, plus_variants, released, resolve


CONTENT = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub({("owner/name", "folder/model.pth"): CONTENT}) as server:
        download = functools.partial(sources.hf_hub_download, endpoint=server.address, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(sources, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


# On this machine --------------------------------------------------------------------------------------------------
def test_files_and_members(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(b"x")
    with zipfile.ZipFile("b.zip", "w") as archive:
        archive.writestr("unc/c.pth", b"x")
    assert (resolve("a.pth").path, resolve("a.pth").member) == (Path("a.pth"), None)
    source = resolve("b.zip::unc/c.pth")
    assert (source.path, source.member, source.repo, source.revision) == (Path("b.zip"), "unc/c.pth", None, None)
    assert source.checksum is None  # to be computed
    Path("odd::name").write_bytes(b"x")
    assert resolve("odd::name").path == Path("odd::name")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere.pth", "There is no file 'nowhere.pth'."),
        ("nowhere.zip::a.pth", "There is no file 'nowhere.zip'."),
        ("folder/nowhere", "There is no file 'folder/nowhere'."),
        ("rec-base-refcocco", "did you mean 'rec-base-refcoco'"),
        ("hf://owner/file.pth", "not of the form hf://OWNER/NAME/FILE"),
        ("hf://", "not of the form"),
    ],
)
def test_what_cannot_be_meant(checkpoint, message):
    with pytest.raises(SourceError, match=re.escape(message)):
        resolve(checkpoint)


# From a Hub -------------------------------------------------------------------------------------------------------
def test_download_and_cache(hub):
    source = resolve("hf://owner/name/folder/model.pth")
    assert source.path.read_bytes() == CONTENT
    assert (source.repo, source.hub_file, source.revision) == ("owner/name", "folder/model.pth", COMMIT)
    assert source.checksum == hashlib.sha256(CONTENT).hexdigest()
    assert resolve("hf://owner/name@main/folder/model.pth::unc/x.pth").member == "unc/x.pth"
    assert [method for method, _, _ in hub.requests].count("GET") == 1  # the second time from the cache


def test_a_dropped_connection_is_resumed_where_it_broke(hub, monkeypatch):
    # The library keeps what it has received in steps of this size, 10 MB otherwise.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.drop_after = 700_000
    assert resolve("hf://owner/name/folder/model.pth").path.read_bytes() == CONTENT
    ranges = [sent for method, _, sent in hub.requests if method == "GET"]
    assert ranges[0] is None and len(ranges) == 2
    resumed_at = int(re.fullmatch(r"bytes=(\d+)-", ranges[1])[1])
    assert 700_000 - (1 << 16) < resumed_at <= 700_000
    assert hub.bytes_sent == 700_000 + len(CONTENT) - resumed_at


def test_in_a_process_that_knows_only_the_endpoint(hub, tmp_path):
    script = "import sys, sources; print(sources.resolve(sys.argv[1]).path.stat().st_size)"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(__file__).parents[2] / "conversion"),
    }
    command = [sys.executable, "-c", script, "hf://owner/name/folder/model.pth"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(CONTENT)


def test_plus_signs_and_moved_repositories(hub):
    """Whichever repository and spelling the release uses, the address with a plain plus sign finds it."""
    first, second = load_manifest().repos
    assert plus_variants("a_unc+.pth") == ["a_unc+.pth", "a_unc%2B.pth"]
    places = [(repo, plus) for repo in (first, second) for plus in ("+", "%2B")]
    for number, (repo, plus) in enumerate(places):  # a new name each time, as the cache outlives a repository
        stored = f"{number}_unc{plus}.pth"
        hub.files = {(repo, stored): repo.encode() + stored.encode()}
        for asked in (f"hf://{first}/{number}_unc+.pth", f"hf://{second}/{number}_unc%2B.pth"):
            source = resolve(asked)
            assert (source.repo, source.hub_file) == (repo, stored)
            assert source.path.read_bytes() == hub.files[repo, stored]


def test_released_models(hub):
    row = load_manifest().model("rec-large-refcoco-plus")
    hub.files = {(row.repos[1], row.file.replace("+", "%2B")): CONTENT}
    source = released(row.name)
    assert (source.repo, source.given, source.revision, source.row) == (row.repos[1], row.name, COMMIT, row)
    assert source.path.read_bytes() == CONTENT
    assert resolve(f"hf://{row.repos[0]}/{row.file}").row == row  # known by its file, too


@pytest.mark.parametrize("top", ["", "release/"])
def test_released_archives_with_another_layout(hub, top):
    """The manifest knows the archives' layout from scripts alone; the folder of the dataset decides."""
    row = load_manifest().model("rec-base-refcoco-plus")
    assert row.member == "unc+/best_checkpoint.pth"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("unc/best_checkpoint.pth", "unc+/last.pth", "flickr/best_checkpoint.pth"):
            archive.writestr(top + name, b"x")
    hub.files = {(row.repos[0], row.file): content.getvalue()}
    assert released(row.name).member == f"{top}unc+/last.pth"


def test_what_was_tried_is_listed(hub):
    first, second = load_manifest().repos
    hub.files = {(first, "other.pth"): b"x"}
    with pytest.raises(SourceError) as caught:
        resolve(f"hf://{first}/a+b.pth")
    message = str(caught.value)
    assert "a repository does not exist or is private; the file is not there" in message
    assert f"{first}/a+b.pth, {first}/a%2Bb.pth, {second}/a+b.pth" in message and "\n" not in message


def test_no_connection(hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's attempts
    hub.shutdown()
    hub.server_close()
    with pytest.raises(SourceError, match=r"Hub cannot be reached|failed") as caught:
        resolve("hf://owner/name/folder/model.pth")
    assert "\n" not in str(caught.value)


def test_a_download_that_stays_broken(hub, monkeypatch, tmp_path):
    """Every connection ends early: an error, and no file that looks complete."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answer = HubRequest.answer

    def cut(self, with_body):
        self.server.drop_after = 0
        return answer(self, with_body)

    monkeypatch.setattr(HubRequest, "answer", cut)
    with pytest.raises(SourceError, match="failed"):
        resolve("hf://owner/name/folder/model.pth")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000]
