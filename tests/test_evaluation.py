# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation and bulk prediction: exact, resumable, the same for any number of processes and any way of reading."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import tqdm.auto
from huggingface_hub import ModelCard
from PIL import Image
from pycocotools import mask as coco
from scripts import load_script
from tokenizer import build_tokenizer
from transformers import Trainer, TrainingArguments

from oneref_hf import OneRefForGrounding, OneRefForSegmentation, OneRefImageProcessorPil, OneRefProcessor, cli
from oneref_hf.commands import predict as predict_command
from oneref_hf.commands.predict import complaints_as
from oneref_hf.data.loading import open_referring_data
from oneref_hf.data.records import target_mask
from oneref_hf.evaluation import evaluate_split, length_group
from oneref_hf.evaluation_report import breakdown_table, left_out, results_table, update_card
from oneref_hf.metrics import RecMetric, ResMetric
from oneref_hf.pipeline_oneref import ReferringExpressionPipeline
from oneref_hf.prediction import PredictionError, ProcessError, Run, load_model, make_accelerator


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

SCRIPT = Path(__file__).parents[1] / "training" / "evaluate.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAUNCH += [str(SCRIPT.parent / "accelerate" / "multi_cpu.yaml"), "--num_processes", "2", "--main_process_port", "0"]
PHRASES = (
    "the cup",
    "the big cup on the left",
    "the cup that stands on the table",
    "a spoon lying beside the cup near the edge of it",
    "Handle",
)
RECORDS, SHARD_ROWS, BATCH = 23, 4, 3  # six shards, the last of three; batches divide nothing

# Runs the script, notes which process wrote which shard, and may be killed while writing one.
WRAPPER = f"""
import os, runpy, signal, sys
from pathlib import Path

replace, written = Path.replace, []

def watched(self, target):
    if target.name.startswith("predictions-"):
        if len(written) == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(target)
        with open(os.environ["WRITTEN"], "a") as log:
            log.write(f"{{os.environ.get('RANK', 0)}} {{target.parent.name}}/{{target.name}}\\n")
    return replace(self, target)

Path.replace = watched
sys.argv[0] = {str(SCRIPT)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory, golden_model, fixtures_dir) -> dict[str, Path]:
    """The golden weights as a model that segments and one that does not."""
    folders = {}
    for name, model_class in (("res", OneRefForSegmentation), ("rec", OneRefForGrounding)):
        folders[name] = tmp_path_factory.mktemp("models") / f"tiny-{name}"
        golden_model(model_class).save_pretrained(folders[name])
        size = {"height": 64, "width": 64}
        processor = OneRefProcessor(OneRefImageProcessorPil(size=size), build_tokenizer(fixtures_dir / "tiny.spm"))
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """Two splits, `val` of 23 phrases and two malformed rows, `test` of five phrases; neighbours share a picture."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    rows = []
    for number in range(RECORDS + 5):
        name = f"{number // 3}.png"
        height, width = 40 + 7 * (number // 3), 90 - 5 * (number // 3)
        if not (folder / name).exists():
            pixels = random.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(folder / name)
        # Near where the golden weights point whatever they see, so that some answers are right and some wrong.
        x0, x1 = width * random.uniform(0, 0.2), width * random.uniform(0.4, 1)
        y0, y1 = height * random.uniform(0, 0.4), height * random.uniform(0.6, 1)
        rows.append(
            {
                "image": name,
                "phrase": PHRASES[number % len(PHRASES)],
                "box_xywh": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                "expression_type": ("place", "attribute")[number % 2],
            }
        )
    malformed = [{"image": "0.png", "phrase": ""}, {"image": "gone.png", "phrase": "the cup"}]
    for split, part in (("val", [*rows[:9], *malformed, *rows[9:RECORDS]]), ("test", rows[RECORDS:])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return folder


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator()


def script_arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--batch-size", str(BATCH), "--shard-rows", str(SHARD_ROWS), "--num-threads", "2"]
    return ["--model", str(model), "--dataset", str(data), "--output", str(output), *fixed, *more]


@pytest.fixture(scope="module")
def uninterrupted(model_folders, data_folder, tmp_path_factory) -> Path:
    """The output of one process that ran to the end."""
    output = tmp_path_factory.mktemp("uninterrupted")
    arguments = script_arguments(model_folders["res"], data_folder, output, "--split", "val", "test")
    assert load_script(SCRIPT).main(arguments) == 0
    return output


def shards_in(output: Path) -> list[Path]:
    return sorted(path.relative_to(output) for path in output.glob("*/*.parquet"))


def numbers_in(value, path: str = "") -> dict[str, float]:
    """The leaves of nested dictionaries by their path."""
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, item in value.items() for name, leaf in numbers_in(item, f"{path}/{key}").items()}


def assert_same_results(output: Path, expected: Path):
    """Shards of the same records, and scores equal to 1e-6 (the last bits depend on where tensors lie in memory)."""
    assert shards_in(output) == shards_in(expected)
    for name in shards_in(output):
        ours, theirs = (pq.read_table(folder / name).to_pylist() for folder in (output, expected))
        assert [row["index"] for row in ours] == [row["index"] for row in theirs]
        assert [(row["id"], row["phrase"]) for row in ours] == [(row["id"], row["phrase"]) for row in theirs]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    results = [json.loads((folder / "results.json").read_text()) for folder in (output, expected)]
    ours, theirs = (numbers_in(result["splits"]) for result in results)
    assert len(ours) > 100 and ours == pytest.approx(theirs, rel=0, abs=1e-6)


def test_killed_and_continued_by_two_processes(uninterrupted, model_folders, data_folder, tmp_path):
    """SIGKILL ends `val` at its third shard; two gloo processes continue it, and do all of `test`."""
    wrapper, output, written = tmp_path / "wrapper.py", tmp_path / "output", tmp_path / "written"
    wrapper.write_text(WRAPPER)
    environment = {**os.environ, "WRITTEN": str(written), "OMP_NUM_THREADS": "1"}
    arguments = [str(wrapper), *script_arguments(model_folders["res"], data_folder, output)]
    killed = subprocess.run(
        [sys.executable, *arguments, "--split", "val"], env={**environment, "DIE_AT": "2"}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(shards_in(output)) == 2 and len(list((output / "val").glob(".*.partial"))) == 1
    assert not (output / "results.json").exists()

    continued = subprocess.run(
        [*LAUNCH, *arguments, "--split", "val", "test"], env=environment, capture_output=True, text=True
    )
    assert continued.returncode == 0, continued.stderr
    assert continued.stdout.count("accuracy at IoU 0.5") == 3  # the main process alone prints: two splits and a head
    log = [line.split() for line in written.read_text().splitlines()]
    assert len(log) == len({name for _, name in log}) == 6 + 2  # nobody did a shard twice
    assert {rank for rank, _ in log[2:]} == {"0", "1"}
    assert_same_results(output, uninterrupted)
    assert not list(output.glob("*/.*"))


def test_predict_on_two_processes(uninterrupted, model_folders, data_folder, tmp_path):
    command = [Path(sysconfig.get_path("scripts"), "oneref"), "predict"]
    arguments = script_arguments(model_folders["res"], data_folder, tmp_path / "out", "--split", "val")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, "--no_python", *command, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")] == [
        f"written: {tmp_path / 'out'}, 6 shards",
        f"malformed rows left out: 2, listed in {tmp_path / 'out' / 'malformed.txt'}",
    ]
    for name in sorted(path.name for path in (tmp_path / "out").glob("*.parquet")):
        ours, theirs = (
            pq.read_table(folder / name).to_pylist() for folder in (tmp_path / "out", uninterrupted / "val")
        )
        assert [(row["index"], row["phrase"]) for row in ours] == [(row["index"], row["phrase"]) for row in theirs]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    assert not list((tmp_path / "out").glob(".*"))


def test_streaming_gives_the_same(uninterrupted, model_folders, data_folder, tmp_path):
    arguments = script_arguments(model_folders["res"], data_folder, tmp_path, "--split", "val", "test", "--streaming")
    assert load_script(SCRIPT).main(arguments) == 0
    assert_same_results(tmp_path, uninterrupted)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_counts_what_was_left_out_before_it(finished, streaming):
    """Line 10 and 11 of `val`; a stream is looked into beyond the limit, to see what can be scored."""
    assert finished(split="val", streaming=streaming, limit=9).scores["malformed"] == 0
    assert not (finished.folder / "malformed.txt").exists()
    assert finished(split="val", streaming=streaming, limit=10, overwrite=True).scores["malformed"] == 2
    assert len((finished.folder / "malformed.txt").read_text().splitlines()) == 2
    assert finished(split="val", streaming=streaming, limit=9, overwrite=True).scores["malformed"] == 0
    assert not (finished.folder / "malformed.txt").exists()


def test_stock_trainer_gives_the_same(uninterrupted, model_folders, data_folder, tmp_path):
    model, processor = load_model(str(model_folders["res"]))
    records = open_referring_data(data_folder, "val").records

    def collate(rows):
        return processor(
            [row["image"] for row in rows],
            [row["phrase"] for row in rows],
            boxes=[row["box_truncated"] for row in rows],
            masks=[target_mask(row, (row["image"].height, row["image"].width)) for row in rows],
            return_tensors="pt",
        )

    def compute_metrics(evaluated):
        rec, res = RecMetric(), ResMetric()
        rec.update(evaluated.predictions[0], evaluated.label_ids[0])
        res.update(*map(torch.from_numpy, (evaluated.predictions[1], evaluated.label_ids[1])))
        return {"rec": rec.compute(), "res": res.compute()}

    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path,
            per_device_eval_batch_size=4,
            remove_unused_columns=False,
            label_names=["box_labels", "mask_labels"],
            report_to=[],
            use_cpu=True,
        ),
        data_collator=collate,
        compute_metrics=compute_metrics,
    )
    with torch.no_grad():
        names = set(model(**{name: value for name, value in collate([records[0]]).items() if "labels" not in name}))
    ignored = [*(names - {"pred_boxes", "pred_masks"}), "loss_dict"]
    metrics = trainer.evaluate(records, ignore_keys=ignored)
    scores = json.loads((uninterrupted / "results.json").read_text())["splits"]["val"]
    assert 0 < scores["rec"].pop("score_auroc") < 1  # of predictions with scores, which metrics do not get
    for task in ("rec", "res"):
        assert scores[task]["samples"] == RECORDS
        assert scores[task] == pytest.approx(metrics[f"eval_{task}"], abs=1e-6)
    assert 0.1 < scores["rec"]["accuracy@0.5"] < 0.9 and scores["res"]["miou"] > 0.1


def test_what_is_reported(uninterrupted):
    results = json.loads((uninterrupted / "results.json").read_text())
    scores = results["splits"]["val"]
    assert (scores["samples"], scores["malformed"], scores["unreadable"]) == (RECORDS, 2, 0)
    assert {"paper", "dtype", "protocol"} & set(results) == {"dtype", "protocol"} and "paper" not in scores
    groups = scores["by_phrase_length"]
    assert {name: group["samples"] for name, group in groups.items()} == {"1-5": 9, "6-7": 10, "11+": 4}
    types = scores["by_expression_type"]
    assert {name: group["samples"] for name, group in types.items()} == {"attribute": 11, "place": 12}
    for parts in (groups, types):  # which add up to the whole
        for task, metric in (("rec", "accuracy@0.5"), ("res", "miou")):
            total = sum(part[task][metric] * part["samples"] for part in parts.values())
            assert total == pytest.approx(scores[task][metric] * RECORDS)
    assert [line.split(": ")[0] for line in (uninterrupted / "val" / "malformed.txt").read_text().splitlines()] == [
        "val.jsonl, line 10",
        "val.jsonl, line 11",
    ]
    assert not (uninterrupted / "test" / "malformed.txt").exists()
    with Image.open(uninterrupted / "worst_cases.png") as sheet:
        assert sheet.width > 1000 and len(set(sheet.resize((50, 50)).convert("L").tobytes())) > 20


def test_words_are_counted_into_the_groups_of_the_paper():
    expected = {1: "1-5", 5: "1-5", 6: "6-7", 7: "6-7", 8: "8-10", 10: "8-10", 11: "11+", 40: "11+"}
    assert {count: length_group(" cup  " * count) for count in expected} == expected


def test_picture_protocol_against_the_pipeline(model_folders, data_folder, accelerator, tmp_path):
    """Boxes and masks in the picture's own pixels, against the untruncated annotation."""
    model, processor = load_model(str(model_folders["res"]))
    data = open_referring_data(data_folder, "val")
    evaluation = evaluate_split(
        model, processor, data, tmp_path, split="val", accelerator=accelerator, protocol="picture", run=Run(5, limit=7)
    )
    pipeline = ReferringExpressionPipeline(model=model, processor=processor)
    rows = pq.read_table(tmp_path / "predictions-00000.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(7))
    rec, res = [], []
    for row, record in zip(rows, data.records):
        answer = pipeline(record["image"], record["phrase"])
        assert (row["phrase"], row["image"], row["id"]) == (record["phrase"], record["image_file"], record["id"])
        assert row["score"] == pytest.approx(answer["score"], abs=1e-6)
        assert row["box"] == pytest.approx(list(answer["box"].values()), abs=0.006)
        mask = coco.decode(row["mask"])
        assert np.array_equal(mask, np.asarray(answer["mask"]) > 0)
        target = target_mask(record, mask.shape)
        res.append((mask & target).sum() / (mask | target).sum())
        ours, theirs = np.array(row["box"]), np.array(record["box"])
        sides = np.minimum(ours[2:], theirs[2:]) - np.maximum(ours[:2], theirs[:2])
        shared = np.prod(sides.clip(0))
        areas = [np.prod(box[2:] - box[:2]) for box in (ours, theirs)]
        rec.append(shared / (sum(areas) - shared))
    assert evaluation.scores["rec"]["mean_iou"] == pytest.approx(np.mean(rec), abs=1e-5)
    right = [iou >= 0.5 for iou in rec]
    assert ("score_auroc" in evaluation.scores["rec"]) == (len(set(right)) == 2)
    assert evaluation.scores["res"]["miou"] == pytest.approx(np.mean(res), abs=1e-6)
    assert [case.iou for case in evaluation.worst] == pytest.approx(sorted(res), abs=1e-6)


def test_memory_that_runs_out_lowers_the_batch_size(
    uninterrupted, model_folders, data_folder, accelerator, tmp_path, monkeypatch
):
    model, processor = load_model(str(model_folders["res"]))
    sizes, forward = [], model.forward

    def small_memory(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2 and len(sizes) > 2:  # after two batches that fit
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", small_memory)
    data = open_referring_data(data_folder, "val")
    run = Run(shard_rows=SHARD_ROWS)
    evaluation = evaluate_split(model, processor, data, tmp_path, split="val", accelerator=accelerator, run=run)
    expected = json.loads((uninterrupted / "results.json").read_text())["splits"]["val"]
    for task in ("rec", "res"):
        assert evaluation.scores[task] == pytest.approx(expected[task], abs=1e-6)
    assert max(sizes) == SHARD_ROWS and sizes[-1] <= 2
    assert sum(sizes[:2]) == 8  # done before memory ran out, and not again:
    assert sum(size for size in sizes[2:] if size <= 2) == RECORDS - 8


@pytest.fixture
def finished(model_folders, data_folder, accelerator, tmp_path):
    """Evaluates a few records, with changes to the call."""

    def evaluate(model="rec", split="test", **changes):
        overwrite, limit = changes.pop("overwrite", False), changes.pop("limit", None)
        dtype = changes.pop("dtype", "auto")
        loaded = load_model(str(model_folders[model]), dtype)
        data = open_referring_data(changes.pop("data", data_folder), split, changes.pop("streaming", False))
        shard_rows = changes.pop("shard_rows", 256)
        run = Run(batch_size=5, shard_rows=shard_rows, overwrite=overwrite, limit=limit)
        return evaluate_split(
            *loaded, data, tmp_path / "out", split=split, accelerator=accelerator, run=run, **changes
        )

    evaluate.folder = tmp_path / "out"
    return evaluate


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "res", "tasks": ["rec"]}, "model"),
        ({"split": "val"}, "dataset, split"),
        ({"protocol": "picture"}, "protocol"),
        ({"dtype": "bfloat16"}, "dtype, model"),
        ({"limit": 3}, "limit"),
    ],
)
def test_predictions_of_another_run_are_not_mixed_in(finished, change, named):
    first = finished()
    with pytest.raises(PredictionError, match=rf"another run \({named} differ\)"):
        finished(**change)
    assert finished().scores == first.scores
    assert finished(**change, overwrite=True).scores["samples"] == change.get("limit", 23 if "split" in change else 5)


def test_a_finished_run_needs_no_forward(finished, monkeypatch):
    first = finished()
    monkeypatch.setattr(OneRefForGrounding, "forward", None)
    assert finished().scores == first.scores


def test_a_copy_of_a_shard_is_no_shard(finished):
    """As programs that keep folders in step make them."""
    first = finished()
    (folder,) = {path.parent for path in finished.folder.parent.rglob("predictions-*.parquet")}
    shutil.copy(folder / "predictions-00000.parquet", folder / "predictions-00000 (1).parquet")
    assert finished().scores == first.scores


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_that_come_or_go_between_two_calls(finished, data_folder, tmp_path, streaming):
    """The rows that they belong to become others, so that shards would hold answers for the wrong ones."""
    copy = tmp_path / data_folder.name
    shutil.copytree(data_folder, copy)
    rows = [{"image": f"{number}.png", "phrase": f"phrase {number}", "box": [1, 1, 9, 9]} for number in range(3)]
    (copy / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = {"data": copy / "few.jsonl", "split": None, "streaming": streaming, "shard_rows": 2}
    away = copy / "1.png"
    away.rename(copy / "away")
    assert finished(**call).scores["samples"] == 2
    (copy / "away").rename(away)
    with pytest.raises(PredictionError, match="for other records than the data set has now, perhaps because pictures"):
        finished(**call)
    assert (finished.folder / "malformed.txt").is_file(), "nothing is lost"
    assert finished(**call, overwrite=True).scores["samples"] == 3
    (copy / "2.png").unlink()
    with pytest.raises(PredictionError, match="for more records than the data set has now"):
        finished(**call)


def test_a_damaged_shard_is_named(finished):
    finished()
    (path,) = finished.folder.glob("predictions-*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PredictionError, match=r"predictions-00000.parquet' is damaged; delete it"):
        finished()


def test_boxes_that_come_late_are_scored(finished, data_folder, tmp_path):
    row = {"image": str(data_folder / "0.png"), "phrase": "the cup"}
    rows = [row] * 120 + [{**row, "box": [1, 1, 9, 9]}]
    path = tmp_path / "late.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finished(data=path, split=None).scores["rec"]["samples"] == 1


def test_the_progress_bar_ends_at_its_total(finished, monkeypatch):
    """Also if shards are there already, of which the last is smaller."""
    bars = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *args, **options):
            if options.get("unit") == " phrases" and "total" in options:
                options["disable"] = False  # although nobody looks
                bars.append(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    for _ in range(2):
        finished(split="val", shard_rows=SHARD_ROWS)
    assert [(bar.n, bar.total) for bar in bars] == [(RECORDS, RECORDS)] * 2


def test_a_new_data_set_under_the_old_name_is_noticed(finished, data_folder, tmp_path):
    copy = tmp_path / data_folder.name
    shutil.copytree(data_folder, copy)
    finished(data=copy)
    lines = (copy / "test.jsonl").read_text().splitlines()
    (copy / "test.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(PredictionError, match=r"another run \(dataset differ\)"):
        finished(data=copy)


def test_impossible_tasks(finished, data_folder, tmp_path):
    with pytest.raises(PredictionError, match=r"res cannot be scored on .*: the model does not segment"):
        finished(tasks=["res"])
    boxless = tmp_path / "boxless.jsonl"
    boxless.write_text(json.dumps({"image": str(data_folder / "0.png"), "phrase": "the cup"}))
    for arguments, message in [({}, "nothing to score against"), ({"tasks": ["rec"]}, "the data have no boxes")]:
        with pytest.raises(PredictionError, match=message):
            finished(data=boxless, **arguments)


# oneref predict


def test_predict_without_boxes_and_with_broken_pictures(model_folders, data_folder, tmp_path, capsys):
    cut, wild = tmp_path / "cut.png", tmp_path / "wild.tiff"
    cut.write_bytes((data_folder / "0.png").read_bytes()[:60])
    Image.fromarray(np.full((9, 9), 1e6, dtype=np.float32)).save(wild)
    pictures = (data_folder / "0.png", cut, data_folder / "0.png", wild)
    rows = zip(pictures, ("the cup", "the cup", "a spoon", "the cup"))
    path = tmp_path / "phrases.jsonl"
    path.write_text("\n".join(json.dumps({"image": str(image), "phrase": phrase}) for image, phrase in rows))
    output = tmp_path / "out"
    for _ in range(2):  # the second finds everything done
        arguments = ["--model", str(model_folders["res"]), "--dataset", str(path), "--output", str(output)]
        assert cli.main(["predict", *arguments]) == 0
    assert f"written: {output}, 1 shards" in capsys.readouterr().out
    found = datasets.Dataset.from_parquet(str(output / "predictions-00000.parquet"), cache_dir=tmp_path / "cache")
    assert [row["problem"] is None for row in found] == [True, False, True, False]
    assert "not a readable image" in found[1]["problem"] and found[1]["box"] is None
    assert "lie in [0, 1] or [0, 255]" in found[3]["problem"]
    model, processor = load_model(str(model_folders["res"]))
    pipeline = ReferringExpressionPipeline(model=model, processor=processor)
    assert cli.main(["predict", *arguments, "--overwrite", "--strict"]) == 1
    assert "oneref: The record 'phrases.jsonl, line 2' cannot be used: The file" in capsys.readouterr().err
    for row in (found[0], found[2]):
        answer = pipeline(row["image"], row["phrase"])
        assert row["box"] == pytest.approx(list(answer["box"].values()), abs=0.006)
        assert np.array_equal(coco.decode(row["mask"]), np.asarray(answer["mask"]) > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "many"], "--batch-size is a number or 'auto', not 'many'"),
        (["--batch-size", "0"], "batch_size is at least 1, not 0"),
        (["--columns", "phrase"], "No layout is called 'phrase'"),
        (["--columns", "phrase=", "box=b"], "--columns wants FIELD=COLUMN, not 'phrase='"),
        (["--dataset", "/nowhere/x.jsonl"], "There is no file or directory '/nowhere/x.jsonl'"),
        (["--model", "/nowhere/model"], "There is no model directory '/nowhere/model'"),
        (["--strict"], "val.jsonl, line 10: the phrase is empty"),
    ],
)
def test_predict_says_what_is_wrong(model_folders, data_folder, tmp_path, capsys, arguments, message):
    fixed = ["--model", str(model_folders["rec"]), "--dataset", str(data_folder / "val.jsonl")]
    assert cli.main(["predict", *fixed, "--output", str(tmp_path / "out"), *arguments]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("oneref: ") and message in last


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "3"], "There is not enough memory for batches of 3; give a smaller --batch-size, or none."),
        ([], "There is not enough memory for a single phrase; try --dtype bfloat16 or a smaller model."),
    ],
)
def test_memory_that_never_suffices_is_one_sentence(
    model_folders, data_folder, tmp_path, capsys, monkeypatch, arguments, sentence
):
    def too_large(self, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(OneRefForGrounding, "forward", too_large)
    fixed = ["--model", str(model_folders["rec"]), "--dataset", str(data_folder), "--split", "test"]
    assert cli.main(["predict", *fixed, "--output", str(tmp_path / "out"), *arguments]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"oneref: {sentence}"


def test_another_failure_is_not_taken_for_memory(finished, monkeypatch):
    def broken(self, **inputs):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(OneRefForGrounding, "forward", broken)
    with pytest.raises(RuntimeError, match=r"^a mistake of ours$"):
        finished()


def test_columns_of_other_names(model_folders, data_folder, tmp_path):
    rows = [json.loads(line) for line in (data_folder / "test.jsonl").read_text().splitlines()]
    path = tmp_path / "renamed.jsonl"
    renamed = [{"photo": str(data_folder / row["image"]), "caption": row["phrase"]} for row in rows]
    path.write_text("\n".join(map(json.dumps, renamed)))
    fixed = ["--model", str(model_folders["rec"]), "--dataset", str(path), "--output", str(tmp_path / "out")]
    assert cli.main(["predict", *fixed, "--columns", "image=photo", "phrase=caption"]) == 0
    found = pq.read_table(tmp_path / "out" / "predictions-00000.parquet").to_pylist()
    assert [row["phrase"] for row in found] == [row["phrase"] for row in rows]
    assert all(row["problem"] is None and len(row["box"]) == 4 for row in found)


def test_the_script_scores_in_bfloat16_and_updates_a_card(model_folders, data_folder, tmp_path, capsys):
    card = tmp_path / "README.md"
    card.write_text("# A model\n")
    arguments = script_arguments(model_folders["rec"], data_folder, tmp_path / "out", "--split", "test")
    more = ["--dtype", "bfloat16", "--update-card", str(card)]
    assert load_script(SCRIPT).main([*arguments, *more]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["dtype"] == "bfloat16" and "canvas protocol, bfloat16" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "test" / "run.json").read_text())["dtype"] == "bfloat16"
    held = ModelCard.load(card)
    (entry,) = held.data.eval_results
    assert entry.metric_value == round(100 * results["splits"]["test"]["rec"]["accuracy@0.5"], 2)
    assert (entry.dataset_split, entry.metric_type) == ("test", "accuracy") and held.text.strip() == "# A model"
    missing = ["--update-card", str(tmp_path / "none.md"), "--overwrite"]
    assert load_script(SCRIPT).main([*arguments, *missing]) == 1
    assert "evaluate: There is no model card" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_the_script_fails_with_one_sentence(model_folders, data_folder, tmp_path, capsys):
    arguments = script_arguments(model_folders["rec"], data_folder, tmp_path / "out", "--split", "val", "nope")
    assert load_script(SCRIPT).main(arguments) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("evaluate: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rank", "error", "raised", "message"),
    [
        ("0", PredictionError, cli.CommandError, "^no disk$"),
        ("1", PredictionError, SystemExit, "^1$"),  # the main process says it
        ("1", ProcessError, cli.CommandError, "^process 1: no disk$"),
    ],
)
def test_of_several_processes_one_complains(monkeypatch, rank, error, raised, message):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(predict_command, "_FIRST_SAY", 0)
    with pytest.raises(raised, match=message), complaints_as(cli.CommandError):
        raise error("no disk")


def test_without_the_packages_for_data_sets(model_folders, data_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    command = ["predict", "--model", str(model_folders["rec"]), "--dataset", str(data_folder / "val.jsonl")]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "oneref: The package accelerate is missing: pip install 'oneref-hf[train]'.\n"


def test_trouble_while_writing_is_of_one_process(finished, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ProcessError, match="No space left on device"):
        finished()


# The paper's figures and the model card


def test_tables_show_the_paper_beside_the_score():
    rec = {"accuracy@0.5": 0.87654, "mean_iou": float("nan"), "samples": 9}
    scores = {"rec": rec, "paper": {"accuracy@0.5": 88.75}, "malformed": 2, "unreadable": 0}
    scores |= {
        "by_phrase_length": {"1-5": {"samples": 9, "rec": rec}},
        "by_expression_type": {"place": {"samples": 3}},
    }
    results = {"model": "m", "dataset": "refcoco", "protocol": "canvas", "dtype": "float32", "splits": {"val": scores}}
    lines = [line.split() for line in results_table(results).splitlines()]
    assert ["val", "accuracy", "at", "IoU", "0.5", "9", "87.65", "88.75"] in lines
    assert ["val", "mean", "IoU", "of", "boxes", "9", "-", "-"] in lines
    lines = [line.split() for line in breakdown_table(results).splitlines()]
    assert lines[2:] == [["val", "1-5", "words", "9", "87.65"], ["val", "place", "3", "-"]]
    assert list(left_out(results, Path("out"))) == [
        "val: rows that do not count: 2 malformed (listed in out/val/malformed.txt)."
    ]


def test_figures_of_the_paper(tmp_path):
    figures = load_script(SCRIPT).paper_figures
    assert figures("somewhere/rec-base-refcoco", ["unc"], "testA") == {"accuracy@0.5": 90.95}
    assert figures("rec-base-mixed", ["refcocoplus"], "val") == {"accuracy@0.5": 86.38}
    assert figures("res-large-refcocog", ["gref_umd"], "test") == {"miou": 73.76, "oiou": 77.36}
    assert figures("rec-base-refcoco", ["unc+"], "val") == {}
    assert figures("rec-base-refcoco", ["unc", "gref_umd"], "val") == {}
    assert figures("my-own-model", ["unc"], "val") == {}
    source = {"file": "rec_single_dataset_finetuning_large_unc+.pth", "member": None}
    (tmp_path / "conversion_report.json").write_text(json.dumps({"source": source}))
    assert figures(str(tmp_path), ["refcoco+"], "testB") == {"accuracy@0.5": 83.73}


def test_results_go_into_a_model_card(tmp_path):
    card = tmp_path / "README.md"
    shutil.copyfile(SCRIPT.parents[1] / "model_cards" / "rec-base-refcoco.md", card)
    body = ModelCard.load(card).text
    published = ModelCard.load(card).data.eval_results

    def results(accuracy: float, protocol: str = "canvas") -> dict:
        scores = {"samples": 9, "rec": {"accuracy@0.5": accuracy, "mean_iou": 0.7, "samples": 9}}
        return {"model": "m", "dataset": "refcoco", "protocol": protocol, "splits": {"val": scores}}

    for figures in (results(0.5), results(0.87654), results(0.87654), results(0.8, "picture")):
        update_card(card, figures)
    held = ModelCard.load(card)
    assert held.text == body
    assert [entry for entry in held.data.eval_results if entry.source_name] == published
    ours = [entry for entry in held.data.eval_results if not entry.source_name]
    assert [(entry.metric_value, entry.metric_args) for entry in ours] == [
        (87.65, {"protocol": "canvas", "samples": 9}),
        (80.0, {"protocol": "picture", "samples": 9}),
    ]
    assert {(entry.dataset_type, entry.dataset_split, entry.metric_type) for entry in ours} == {
        ("refcoco", "val", "accuracy")
    }
    bare = tmp_path / "BARE.md"
    bare.write_text("# A card without metadata\n")
    update_card(bare, results(0.5))
    assert ModelCard.load(bare).data.eval_results[0].metric_value == 50
    bare.write_text("---\nmodel-index: [5\n---\n")
    with pytest.raises(PredictionError, match="metadata of the model card"):
        update_card(bare, results(0.5))
    with pytest.raises(PredictionError, match="There is no model card"):
        update_card(tmp_path / "none.md", results(0.5))
