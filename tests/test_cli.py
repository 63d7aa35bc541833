# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The `oneref` command: what it prints and writes, and the one sentence with which it refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import Hub
from PIL import Image

from oneref_hf import OneRefForGrounding, OneRefForSegmentation, OneRefProcessor, cli
from oneref_hf.pipeline_oneref import ReferringExpressionPipeline
from oneref_hf.visualization import draw_answers, draw_figure, draw_heatmap


PHRASES = ["the cup", "the spoon left of it"]


@pytest.fixture(scope="module")
def models(golden_model, tiny_processor, tmp_path_factory):
    """Directories of a model that segments, one that grounds, and one that can do neither."""
    folders = tmp_path_factory.mktemp("models")
    grounding = golden_model(OneRefForGrounding)
    saved = {"segmentation": golden_model(OneRefForSegmentation), "grounding": grounding, "bare": grounding.oneref}
    for name, model in saved.items():
        model.save_pretrained(folders / name)
        tiny_processor.save_pretrained(folders / name)
    return folders


@pytest.fixture(scope="module")
def coffee(fixtures_dir) -> str:
    return str(fixtures_dir / "coffee_210x140.png")


@pytest.fixture(scope="module")
def finder(models):
    return ReferringExpressionPipeline(
        model=OneRefForSegmentation.from_pretrained(models / "segmentation"),
        processor=OneRefProcessor.from_pretrained(models / "segmentation"),
        device="cpu",
    )


@pytest.fixture(scope="module")
def answers(finder, coffee):
    return finder(coffee, PHRASES, heatmap=True)


@pytest.fixture(scope="module")
def boxes(finder, coffee):
    """The answers without masks, whose scores are about the boxes."""
    return finder(coffee, PHRASES, mask=False)


@pytest.fixture
def ground(models, coffee, capsys):
    """Returns a function that runs `oneref ground` and gives its exit code, stdout and stderr."""

    def run(*arguments, image=coffee, phrases=PHRASES, model="segmentation", device="cpu"):
        capsys.readouterr()
        options = ["--device", device, *(["--model", str(models / model)] if model else [])]
        code = cli.main(["ground", str(image), *phrases, *options, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def same_picture(path: Path, expected: Image.Image) -> bool:
    with Image.open(path) as picture:
        return picture.mode == expected.mode and np.array_equal(np.asarray(picture), np.asarray(expected))


# What is printed and written


def test_the_table(ground, boxes):
    code, stdout, stderr = ground()
    assert (code, stderr) == (0, "")
    header, *rows = stdout.splitlines()
    assert header.split() == ["phrase", "score", "x0", "y0", "x1", "y1"]
    for row, phrase, answer in zip(rows, PHRASES, boxes, strict=True):
        assert row.startswith(phrase) and len(row) == len(header)
        score, *box = row.removeprefix(phrase).split()
        assert float(score) == pytest.approx(answer["score"], abs=1e-4)
        assert [float(value) for value in box] == pytest.approx(list(answer["box"].values()), abs=0.07)


def test_json_holds_the_answers(ground, boxes, tmp_path):
    code, stdout, stderr = ground("--json")
    assert (code, stderr) == (0, "")
    records = json.loads(stdout)
    assert [list(record) for record in records] == [["phrase", "score", "box"]] * 2
    for record, phrase, answer in zip(records, PHRASES, boxes, strict=True):
        assert record["phrase"] == phrase and record["score"] == pytest.approx(answer["score"], abs=2e-6)
        assert record["box"] == pytest.approx(list(answer["box"].values()), abs=0.011)
    output = tmp_path / "out.png"
    records = json.loads(ground("--json", "--output", output, "--mask", "--heatmap")[1])
    assert [(record["mask"], record["heatmap"]) for record in records] == [
        (str(tmp_path / f"out.mask{position}.png"), str(tmp_path / f"out.heatmap{position}.png"))
        for position in (1, 2)
    ]


def test_pictures(ground, answers, boxes, coffee, tmp_path):
    code, stdout, _ = ground("--output", tmp_path / "boxes.png")
    assert code == 0 and stdout.endswith(f"\nwritten: {tmp_path}/boxes.png\n")
    assert same_picture(tmp_path / "boxes.png", draw_answers(coffee, boxes))
    ground("--output", tmp_path / "all.png", "--mask", "--heatmap")
    assert same_picture(tmp_path / "all.png", draw_answers(coffee, answers))
    for position, answer in enumerate(answers, start=1):
        assert same_picture(tmp_path / f"all.mask{position}.png", answer["mask"])
        assert same_picture(tmp_path / f"all.heatmap{position}.png", draw_heatmap(coffee, answer["heatmap"]))
    ground("--output", tmp_path / "figure.png", "--figure")
    assert same_picture(tmp_path / "figure.png", draw_figure(coffee, answers))
    assert len(list(tmp_path.iterdir())) == 7, "nothing temporary stays behind"


def test_a_model_that_only_grounds(ground, coffee, tmp_path):
    assert ground("--output", tmp_path / "figure.jpg", "--figure", model="grounding")[0] == 0
    with Image.open(tmp_path / "figure.jpg") as figure:
        assert figure.format == "JPEG" and figure.width == 12 + 3 * 372
    code, stdout, stderr = ground("--output", tmp_path / "masks.png", "--mask", model="grounding")
    assert (code, stdout) == (1, "") and "needs a model that segments" in stderr
    assert not (tmp_path / "masks.png").exists()


def test_answers_below_the_threshold(ground, answers, tmp_path):
    threshold = (answers[0]["score"] + answers[1]["score"]) / 2
    kept = [answer["score"] >= threshold for answer in answers]
    assert sorted(kept) == [False, True]
    options = ("--threshold", threshold, "--output", tmp_path / "out.png", "--mask")
    records = json.loads(ground(*options, "--json")[1])
    assert [record["box"] is not None for record in records] == kept
    assert ["mask" in record for record in records] == kept
    assert len(list(tmp_path.iterdir())) == 2
    rows = ground(*options)[1].splitlines()[1:3]
    assert [row.split()[-5:] == ["-"] * 5 for row in rows] == [not keep for keep in kept]


def test_number_formats(ground, boxes):
    records = json.loads(ground("--json", "--dtype", "bfloat16")[1])
    for record, answer in zip(records, boxes):
        assert record["box"] == pytest.approx(list(answer["box"].values()), abs=5)
        assert record["box"] != list(answer["box"].values())


def test_standard_input(ground, coffee, monkeypatch):
    expected = ground("--json")
    for content, code in ((Path(coffee).read_bytes(), 0), (b"", 1), (b"no picture", 1)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        result = ground("--json", image="-")
        if code == 0:
            assert result == expected
        else:
            assert result[:2] == (1, "") and result[2].startswith("oneref: Standard input is not a readable picture: ")
            assert result[2].count("\n") == 1


def test_wide_characters_keep_the_columns_aligned(ground):
    phrases = ["左の猫", "e\u0301te\u0301", "two\nlines", "plain"]
    rows = ground(phrases=phrases)[1].splitlines()
    assert [len(row) for row in rows] == [len(rows[0]) + extra for extra in (0, -3, 2, 0, 0)]


# In a process of its own


def test_the_command_is_quiet(models, coffee):
    command = [sys.executable, "-c", "import sys; from oneref_hf.cli import main; sys.exit(main())"]
    arguments = [
        "ground",
        coffee,
        PHRASES[0],
        "日本",
        "--model",
        str(models / "segmentation"),
        "--device",
        "cpu",
        "--json",
    ]
    # An output that knows ASCII alone must do.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert [record["phrase"] for record in json.loads(result.stdout)] == [PHRASES[0], "日本"]


def test_a_model_from_the_hub(ground, models, coffee, tmp_path):
    """Downloaded once, then from the cache; and what is said of an id that nobody has."""
    files = {("owner/name", path.name): path.read_bytes() for path in (models / "segmentation").iterdir()}
    command = [sys.executable, "-c", "import sys; from oneref_hf.cli import main; sys.exit(main())", "ground", coffee]
    with Hub(files) as hub:
        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        found, absent = (
            subprocess.run(
                [*command, *PHRASES, "--model", model, "--device", "cpu", "--json"],
                env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            for model in ("owner/name", "owner/absent")
        )
        downloaded = [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout) == json.loads(ground("--json")[1])
    assert downloaded == ["/owner/name/resolve/main/model.safetensors"]
    assert refused((absent.returncode, absent.stdout, absent.stderr)) == (
        "oneref: There is no directory 'owner/absent', and the Hub has no model of that name that you may see; check "
        "the name, or log in with `hf auth login` if it is private.\n"
    )


def test_help_imports_nothing_slow():
    code = (
        "import sys\nfrom oneref_hf.cli import main\ntry: main(['ground', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: oneref ground") and result.stdout.endswith("\n[]\n")


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom oneref_hf import cli\n"
        "options = SimpleNamespace(run=lambda _: print('x' * 1_000_000), verbose=False)\n"
        "cli.build_parser = lambda: SimpleNamespace(parse_args=lambda _: options)\nsys.exit(cli.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


# Refusals


def refused(result, exit_code=1) -> str:
    code, stdout, stderr = result
    assert (code, stdout) == (exit_code, "")
    assert stderr.startswith("oneref: ") and stderr.count("\n") == 1, "one sentence"
    return stderr


def test_bad_pictures(ground, fixtures_dir, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((fixtures_dir / "coffee_210x140.png").read_bytes()[:5000])
    output = tmp_path / "out.png"
    assert "There is no image file" in refused(ground("--output", output, image=tmp_path / "absent.png"))
    for name in ("empty.png", "text.png", "cut.png"):
        assert "is not a readable image, or is cut off" in refused(ground("--output", output, image=tmp_path / name))
    assert "not a readable image" in refused(ground("--output", output, image=tmp_path))
    assert "No picture could be read from" in refused(ground(image="http://127.0.0.1:1/a.png"))
    assert not output.exists()


def test_bad_phrases(ground):
    assert "Phrase 2 is empty" in refused(ground(phrases=["the cup", "  "]))
    assert "Phrase 1 is not valid text" in refused(ground(phrases=["\udcff"]))


def test_bad_models(ground, models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "cut").mkdir()
    for file in (models / "grounding").iterdir():
        content = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    (tmp_path / "empty").mkdir()
    sentences = {
        str(models / "bare"): "holds a OneRefModel, which cannot say where a phrase is",
        str(tmp_path): "holds a CLIPModel, which cannot say where a phrase is",
        str(tmp_path / "empty"): "is not a model, for it has no config.json",
        str(tmp_path / "absent"): "There is no model directory",
        "./absent": "There is no model directory",
        "nobody/absent": "There is no directory 'nobody/absent', and the Hub's model cannot be loaded",
        str(tmp_path / "config.json"): "is a file, but a model is a directory",
        str(tmp_path / "broken"): "cannot be loaded",
        str(tmp_path / "cut"): "cannot be loaded",
    }
    for model, sentence in sentences.items():
        assert sentence in refused(ground("--model", model, model=None))


def test_bad_devices(ground):
    for device in ("nonsense", "cuda:99", "meta"):
        assert f"The device '{device}' cannot be used" in refused(ground(device=device))


def test_bad_outputs(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_finder", lambda *_: pytest.fail("checked too late"))
    assert "names no picture format" in refused(ground("--output", tmp_path / "out.xyz"))
    assert "names no picture format" in refused(ground("--output", tmp_path / "out"))
    assert "cannot be written" in refused(ground("--output", tmp_path / "absent" / "out.png"))
    (tmp_path / "folder.png").mkdir()
    assert "cannot be written" in refused(ground("--output", tmp_path / "folder.png"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written" in refused(ground("--output", tmp_path / "out.png"))


def test_bad_usage(ground, capsys):
    for option in ("--mask", "--heatmap", "--figure"):
        assert f"{option} makes pictures, so it needs --output" in refused(ground(option), exit_code=2)
    assert "--threshold is a score from 0 to 1, not 50" in refused(ground("--threshold", "50"), exit_code=2)
    for arguments in ([], ["ground", "a.png", "it", "--dtype", "int8"], ["ground", "--example", "it"], ["nonsense"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "error:" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_what_was_there(ground, tmp_path, monkeypatch):
    output = tmp_path / "out.png"
    output.write_bytes(b"earlier")
    save = Image.Image.save

    def full_disk(self, path, **kwargs):
        if "mask2" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(self, path, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    sentence = refused(ground("--output", output, "--mask"))
    assert "out.mask2.png' cannot be written: " in sentence and "No space left" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"] and output.read_bytes() == b"earlier"
    refused(ground("--output", tmp_path / "out.xbm"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_names_too_long_to_write(ground, tmp_path):
    """The first is too long only with what the name is given until the picture is complete."""
    for length in (250, 300):
        output = tmp_path / f"{'a' * (length - 4)}.png"
        assert "File name too long" in refused(ground("--output", output))
    assert not list(tmp_path.iterdir())


def test_interrupted(ground, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ReferringExpressionPipeline, "__call__", interrupt)
    assert ground("--output", tmp_path / "out.png") == (130, "", "")
    assert not list(tmp_path.iterdir())


def test_verbose_shows_the_traceback(ground):
    code, stdout, stderr = ground("--verbose", image="absent.png")
    assert (code, stdout) == (1, "")
    assert "Traceback" in stderr and stderr.splitlines()[-1].startswith("oneref: There is no image file")
