# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Every code block of the README runs as it is written, in its order, in a folder with stand-ins for what it names.

A stand-in has the name that the README uses (`picture.jpg`, `best_checkpoint.pth`, `train2014`, ...), so that commands
stay as they are; the Hub is a server on this machine. Python blocks are executed, files written, commands called with
the arguments that a shell would give them, in this process because starting Python takes longer than all the rest, and
the first script as a person's shell would. What is not run, or runs with arguments that make it smaller, is listed
here with its reason.
"""

import functools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import sources
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from hub_server import Hub
from manifest import load_manifest
from PIL import Image

from oneref_hf import cli


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands, by how they begin, that are not run, and why.
NOT_RUN = {
    "pip install": "the environment of the tests is what it makes, and .ci/run starts with it",
    "python -m pytest": "it is what runs this test",
    "python training/ablate_mrefm.py": "it takes an hour; tests/test_small_model_training.py runs two of its arms",
}
# Commands whose arguments are checked but that are not run, and why.
PARSED_ONLY = {
    "oneref demo": "it serves until it is stopped; the tests of the page use it in a browser",
}
# Arguments that make a command small enough for a test, and why; everything before them is as written.
SMALLER = {
    "training/recipes/my_data.yaml": (
        "--model.image_size 64 --run.workers 0"
        " --stages.fine-tuning.batch_size 4 --stages.fine-tuning.batch_size_per_device 4",
        "the stand-ins are a model for 64 pixels and a data set of four phrases",
    ),
    "training/recipes/rec_single_base.yaml --variant refcoco --data.images": (
        "--smoke --output_dir outputs/second",
        "it takes hours on eight GPUs",
    ),
    "training/pretrain_mrefm.py": ("--smoke", "it takes half a day on 32 GPUs"),
    "training/make_scenes.py": (
        "--train 64 --val 8 --test 16 --compositional 8",
        "drawing 15000 scenes takes minutes",
    ),
    "training/start_small_model.py": ("--scenes 248 --steps 2 --pictures 110 --device cpu", "it takes hours"),
    "training/ship_small_model.py": ("--output outputs/shipped", "the package would get another model"),
}
# Languages of blocks that say something rather than do it.
NOT_CODE = {"text": "the folder map", "bibtex": "the citation"}


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str
    line: int

    def __str__(self):
        return f"README.md:{self.line}"


def blocks_of(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(
            match[1],
            next(iter(re.findall(r'title="([^"]+)"', match[2])), None),
            match[3],
            text.count("\n", 0, match.start()) + 1,
        )
        for match in found
    ]


BLOCKS = blocks_of(README)


# The place -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hub(original_checkpoint, fixtures_dir, tmp_path_factory):
    """A Hub with tiny models under the names of the released ones."""
    manifest = load_manifest()
    files = {(manifest.repos[0], manifest.tokenizer): (fixtures_dir / "tiny.spm").read_bytes()}
    folder = tmp_path_factory.mktemp("hub")
    members: dict[str, list[str]] = {}
    for row in manifest:
        if row.name.startswith(("rec-base-", "res-base-")) and row.member:
            members.setdefault(row.file, []).append(row.member)
    for file, names in members.items():
        archive = folder / file
        with zipfile.ZipFile(archive, "w") as writer:
            for name in names:
                writer.writestr(name, original_checkpoint(file[:3]).read_bytes())
        files[manifest.repos[0], file] = archive.read_bytes()
    with Hub(files) as server:
        yield server


@pytest.fixture
def place(tmp_path, original_checkpoint, fixtures_dir, hub, monkeypatch) -> Path:
    """A folder like a checkout, with a stand-in for every name that the README uses."""
    for name in ("conversion", "training", "model_cards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "fixtures").symlink_to(fixtures_dir)
    coffee = Image.open(fixtures_dir / "coffee_210x140.png").convert("RGB")

    coffee.save(tmp_path / "picture.jpg")
    checkpoint = original_checkpoint("rec").read_bytes()
    (tmp_path / "best_checkpoint.pth").write_bytes(checkpoint)
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.writestr("unc/best_checkpoint.pth", checkpoint)
    (tmp_path / "beit3.spm").write_bytes((fixtures_dir / "tiny.spm").read_bytes())
    vqkd = "vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth"
    (tmp_path / vqkd).write_bytes(original_checkpoint("vqkd").read_bytes())

    for name in ("train2014", "IMAGES", "my_data/photos"):
        (tmp_path / name).mkdir(parents=True)
    for number in (1, 2):
        coffee.save(tmp_path / "my_data" / "photos" / f"{number}.jpg")
    row = {"image": "photos/2.jpg", "phrase": "the cup", "box": [50, 30, 120, 110]}
    (tmp_path / "my_data" / "val.jsonl").write_text(json.dumps(row) + "\n")
    photo = "COCO_train2014_000000000009.jpg"
    coffee.save(tmp_path / "train2014" / photo)
    size, polygon = {"height": 140, "width": 210}, [[20.0, 20.0, 90.0, 20.0, 90.0, 90.0]]
    for split in ("train", "val", "testA", "testB"):
        torch.save([(photo, size, [20.5, 20.0, 70.0, 70.0], "the left cup", polygon)], tmp_path / f"unc_{split}.pth")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


# Commands --------------------------------------------------------------------------------------------------------
def commands_of(block: Block) -> list[list[str]]:
    """The simple commands of a shell block, as lists of words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [command for command in words if command]  # neither empty lines nor those that are comments


def started_with(command: list[str], table: dict) -> str | None:
    line = shlex.join(command)
    return next((beginning for beginning in table if line.startswith(beginning)), None)


def run_script(path: str, arguments: list[str], hub: Hub, place: Path) -> int:
    """A script as `python path arguments`, in this process; released models come from the Hub on this machine."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *arguments])
        if {"--name", "--all"} & {*arguments}:
            download = functools.partial(sources.hf_hub_download, endpoint=hub.address, cache_dir=place / "cache")
            patch.setattr(sources, "hf_hub_download", download)
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as exit_:
            return exit_.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
    return 0


def run_command(command: list[str], hub: Hub, place: Path) -> int:
    if command[0] == "oneref":
        return cli.main(command[1:])
    if command[0] == "python":
        return run_script(command[1], command[2:], hub, place)
    if command[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(command[2:])
        if launch.config_file is not None:
            assert load_config_from_file(launch.config_file).num_processes > 1
        words = [launch.training_script, *launch.training_script_args]
        return run_command(words if launch.no_python else ["python", *words], hub, place)
    raise AssertionError(f"nothing is known about '{shlex.join(command)}'")


def run_in_a_process(command: list[str], hub: Hub, place: Path) -> int:
    """As a person's shell does, with the Hub's address alone changed."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(place / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run([sys.executable, *command[1:]], env=environment, check=False).returncode


# The tests -------------------------------------------------------------------------------------------------------
def test_every_block_runs(place, hub, capfd):
    used, executed = set(), []
    first = True  # of the scripts, which starts as a person's shell starts it
    for block in BLOCKS:
        if block.language in NOT_CODE:
            used.add(block.language)
            continue
        if block.title is not None:
            assert (place / block.title).parent.is_dir(), f"{block}: there is no folder for {block.title}"
            (place / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        else:
            assert block.language == "bash", f"{block}: nobody knows how to run {block.language!r}"
            for command in commands_of(block):
                line = shlex.join(command)
                if (beginning := started_with(command, NOT_RUN)) is not None:
                    used.add(beginning)
                    continue
                if (beginning := started_with(command, PARSED_ONLY)) is not None:
                    used.add(beginning)
                    cli.build_parser().parse_args(command[1:])
                    continue
                for part, (extra, _) in SMALLER.items():
                    if part in line:
                        used.add(part)
                        command = [*command, *shlex.split(extra)]
                        break
                if first and command[0] == "python":
                    code, first = run_in_a_process(command, hub, place), False
                else:
                    code = run_command(command, hub, place)
                assert code == 0, f"{block}: {line}\n{capfd.readouterr().err}"
        executed.append(block)
    assert [block for block in BLOCKS if block not in executed and block.language not in NOT_CODE] == []
    results = json.loads((place / "outputs/evaluate/rec-base-refcoco-on-refcoco/canvas/results.json").read_text())
    assert results["splits"]["val"]["paper"] == {"accuracy@0.5": 88.75}
    assert re.search(r"^val +accuracy at IoU 0\.5 +1 +[\d.]+ +88\.75$", capfd.readouterr().out, re.MULTILINE)
    # What is listed as an exception and is none any longer would hide something one day.
    assert used == {*NOT_RUN, *PARSED_ONLY, *SMALLER, *NOT_CODE}
    for written in (
        "oneref-example.png",
        "answer.png",
        "answer.mask1.png",
        "outputs/answer.png",
        "answers.mask2.png",
        "exported.pth",
        "converted/rec-base-refcocog/model.safetensors",
        "converted/refcoco/README.md",
        "outputs/my_data/results.json",
        "outputs/evaluate/rec-base-refcoco-on-refcoco/canvas/worst_cases.png",
        "outputs/evaluate/rec-base-refcoco-on-my_data/picture/results.json",
        "predictions-val/predictions-00000.parquet",
        "outputs/scenes/worst_cases.png",
        "outputs/shipped/README.md",
        "exported/rec-base-refcoco-int8/model.onnx",
        "converted/rec-base-refcoco-int8/model.safetensors",
    ):
        assert (place / written).is_file(), written


def test_the_command_that_ci_reads():
    """`.ci/run` takes its test command from here."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"sed -n '(s/[^']+)' README\.md", script)[1]
    found = subprocess.run(["sed", "-n", pattern, str(ROOT / "README.md")], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[0].startswith("python -m pytest")


def test_links_lead_somewhere():
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    }
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(targets) > 10
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target
    named = re.findall(
        r"`(?:python )?((?:conversion|training|benchmarks|examples|docs|tests|model_cards)/[\w./]*)`", prose
    )
    assert named
    for path in named:
        assert (ROOT / path).exists(), path
