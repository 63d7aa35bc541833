# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref demo` before anything is served, and the files of a Space. Needs neither Gradio nor a browser."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, PushHub

from oneref_hf import cli


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_gradio(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name))


def test_without_gradio(without_gradio, tmp_path, capsys):
    assert cli.main(["demo", "--model", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "oneref: The page needs Gradio: pip install 'oneref-hf[demo]'.\n"


def test_a_model_that_is_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert cli.main(["demo", "--model", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err == f"oneref: The directory '{tmp_path}' is not a model, for it has no config.json.\n"
    )


def test_how_long_uploads_are_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert cli.main(["demo", "--model", str(tmp_path), "--keep", "0"]) == 2
    assert capsys.readouterr().err == "oneref: --keep is a number of minutes above 0, not 0.\n"


def test_a_space_requires_what_the_package_does():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    demo = re.search(r"^demo = (\[.*?\])", project, re.MULTILINE)[1]
    needed = re.findall(r'"([^"]+)"', core) + re.findall(r'"([^"]+)"', demo)
    required = [
        line
        for line in (ROOT / "spaces/requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert required == needed


def test_a_space_is_made_as_its_readme_says(tmp_path):
    text = (ROOT / "spaces/README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].splitlines()]
    assert commands and all(command[:3] == ["hf", "upload", "NAME/SPACE"] for command in commands)
    with PushHub() as hub:
        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        for command in commands:
            process = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *command[1:]]
            subprocess.run(process, cwd=ROOT, env={**os.environ, **settings}, check=True)
    files = hub.repositories["NAME/SPACE"]
    kept = [path for folder in ("src", "spaces") for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in kept if "__pycache__" not in path.parts]
    assert files == {path.relative_to(ROOT).as_posix().removeprefix("spaces/"): path.read_bytes() for path in kept}
    assert {"app.py", "requirements.txt", "src/oneref_hf/small_model_files/model.safetensors"} <= files.keys()
    assert files["src/oneref_hf/small_model_files/model.safetensors"] in hub.large.values(), "as a large file"


def test_the_front_matter_of_a_space():
    _, front, text = (ROOT / "spaces/README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["sdk"] == "gradio" and (ROOT / "spaces" / facts["app_file"]).is_file()
    assert re.fullmatch(r"6\.(3[1-9]|[4-9]\d)\.\d+", facts["sdk_version"]), "within the bounds of the extra"
    assert len(facts["short_description"]) <= 60, "the Hub takes no more"
    assert facts["title"] and facts["license"] == "apache-2.0" and "ONEREF_MODEL" in text
