# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The commands of training/: smoke runs, launches over processes and machines, and what they say about mistakes."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import convert_oneref
import pytest
import torch
import trainer_world as world
from hub_server import TOKEN, PushHub
from PIL import Image
from scripts import load_script
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    OmDetTurboConfig,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    set_seed,
)

from oneref_hf import (
    Beit3Config,
    Beit3Model,
    OneRefForGrounding,
    OneRefForPreTraining,
    OneRefForSegmentation,
    OneRefModel,
    OneRefProcessor,
)
from oneref_hf.data.loading import load_referring_dataset
from oneref_hf.data.pseudo_labels import Detection, pseudo_phrases, without_duplicates
from oneref_hf.data.semantic_relation import semantic_relation_labels
from oneref_hf.recipes import load_recipe, recipes_in
from oneref_hf.trainer import OneRefTrainer
from oneref_hf.trainer_callbacks import StopOnSigterm
from oneref_hf.training_command import main
from oneref_hf.training_run import resize_positions


TRAINING = Path(__file__).parents[1] / "training"


def script(name):
    return load_script(TRAINING / f"{name}.py")


label_semantic_relation, make_pseudo_labels = script("label_semantic_relation"), script("make_pseudo_labels")
RECIPES, CONFIGS = TRAINING / "recipes", TRAINING / "accelerate"
TASKS = {"finetune": ("rec", "res", "rec+res"), "pretrain_mrefm": ("mrefm",)}
REC = ("rec_single_base.yaml", "--variant", "refcoco")
RES = ("res_single_base.yaml", "--variant", "refcoco")
MREFM = ("mrefm_rec_base.yaml",)


def command(name, recipe, folder, *more):
    file, *variant = recipe
    return [str(RECIPES / file), *variant, "--smoke", "--output_dir", str(folder), *more]


def run(name, recipe, folder, *more):
    return main(name, "", TASKS[name], command(name, recipe, folder, *more))


@pytest.mark.parametrize(
    "name, recipe, model_class, score",
    [
        ("finetune", REC, OneRefForGrounding, "accuracy@0.5"),
        ("finetune", RES, OneRefForSegmentation, "miou"),
        ("pretrain_mrefm", MREFM, OneRefForPreTraining, None),
    ],
)
def test_a_smoke_run_gives_a_model_and_its_scores(name, recipe, model_class, score, tmp_path, capsys):
    assert run(name, recipe, tmp_path) == 0
    finished = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("finished: "))
    model, processor = model_class.from_pretrained(finished), OneRefProcessor.from_pretrained(finished)
    assert (finished.parent / "curves.png").is_file() and (finished / "README.md").is_file()
    assert model.config.drop_path_rate == 0 and model.config.loss_weights["box_l1"] == 1
    with torch.no_grad():
        boxes = model.eval()(**processor(Image.new("RGB", (80, 60)), "the red box")).pred_boxes
    assert boxes.isfinite().all()
    for stage in ("warm-up", "fine-tuning" if name == "finetune" else "pre-training"):
        assert json.loads((tmp_path / stage / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    if score:
        scores = json.loads((tmp_path / "results.json").read_text())["synthetic"]["val"]
        assert scores["samples"] == 10 and 0 <= scores[score] <= 1

    before = (finished / "model.safetensors").stat().st_mtime_ns
    assert run(name, recipe, tmp_path) == 0  # nothing is left to do
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_the_first_stage_freezes_the_encoder_and_the_second_starts_from_it(tmp_path):
    assert run("finetune", REC, tmp_path, "--stages.fine-tuning.learning_rate", "1e-12") == 0
    first, second = (
        OneRefForGrounding.from_pretrained(tmp_path / stage / "finished").state_dict()
        for stage in ("warm-up", "fine-tuning")
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("--seed", "7"), "holds a run of another recipe"),
        (("--stages.warm-up.epoch", "7"), "unknown key 'stages.warm-up.epoch'"),
        (("--model.init", "/nowhere/at/all"), "'/nowhere/at/all' cannot be loaded"),
        (("--data.dataset", "nowhere.jsonl"), "There is no file or directory 'nowhere.jsonl'"),
    ],
)
def test_a_mistake_is_one_sentence(change, sentence, tmp_path, capsys):
    if "--seed" in change:
        (tmp_path / "recipe.yaml").write_text("name: other\n")
        (tmp_path / "warm-up" / "checkpoint-1").mkdir(parents=True)
    assert run("finetune", REC, tmp_path, *change) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("finetune: ") and sentence in error


def test_the_folder_of_the_scripts_hides_no_library(monkeypatch, capsys):
    monkeypatch.syspath_prepend(TRAINING)
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    assert Path(importlib.util.find_spec("evaluate").origin) == TRAINING / "evaluate.py"
    assert main("finetune", "", (), ["nothing.yaml"]) == 1
    assert Path(importlib.util.find_spec("evaluate").origin).name == "__init__.py"


def test_a_script_refuses_the_recipes_of_the_other(tmp_path, capsys):
    assert run("finetune", MREFM, tmp_path) == 1
    assert "is a recipe for task mrefm, not for this script" in capsys.readouterr().err


# Processes ----------------------------------------------------------------------------------------------------------
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def first_losses(folder, stage="warm-up"):
    state = json.loads((folder / stage / "checkpoint-2" / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


# Drop path is drawn per process. The scores are of an untrained box head, but of the same one.
COMPARABLE = ["--stages.all.drop_path_rate", "0.0", "--evaluation.splits", "{synthetic: [val]}"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert run("pretrain_mrefm", MREFM, folder, *COMPARABLE) == 0
    return folder


def launched(tmp_path, arguments_per_launch):
    program = str(TRAINING / "pretrain_mrefm.py")
    arguments = command("pretrain_mrefm", MREFM, tmp_path, *COMPARABLE)
    launches = [
        subprocess.Popen(
            [*LAUNCH, *launch, program, *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for launch in arguments_per_launch
    ]
    for launch in launches:
        _, error = launch.communicate(timeout=1200)  # a busy machine is slow; nothing here waits for a time
        assert launch.returncode == 0, error[-3000:]


def test_two_machines_train_as_one_process_does(tmp_path, alone):
    config = ["--config_file", str(CONFIGS / "multi_node.yaml"), "--num_machines", "2", "--num_processes", "2"]
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    launched(tmp_path, [[*config, *address, "--machine_rank", str(rank)] for rank in (0, 1)])
    for stage in ("warm-up", "pre-training"):
        assert first_losses(tmp_path, stage) == pytest.approx(first_losses(alone, stage), abs=1e-5)


def test_fsdp2_on_two_processes_saves_what_one_process_loads(tmp_path, alone):
    config = tmp_path / "fsdp2.yaml"
    config.write_text((CONFIGS / "fsdp2.yaml").read_text() + "use_cpu: true\n")
    options = ["--config_file", str(config), "--num_processes", "2", "--main_process_port", free_port()]
    launched(tmp_path / "run", [options])
    for stage in ("warm-up", "pre-training"):
        assert first_losses(tmp_path / "run", stage) == pytest.approx(first_losses(alone, stage), abs=1e-5)
        sharded, whole = (
            OneRefForPreTraining.from_pretrained(folder / stage / "finished").state_dict()
            for folder in (tmp_path / "run", alone)
        )
        for name, value in whole.items():
            torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-5, msg=name)
    expected, found = (json.loads((folder / "results.json").read_text()) for folder in (alone, tmp_path / "run"))
    assert found["synthetic"]["val"] == pytest.approx(expected["synthetic"]["val"], abs=1e-3)


TERMINATED = """
import os, signal, sys, time
from oneref_hf.trainer_callbacks import StopOnSigterm
from oneref_hf.training_command import main

def end_in_step_4(self, args, state, control, **kwargs):
    if state.global_step == 3:
        if args.process_index == 1:
            os.kill(os.getppid(), signal.SIGTERM)
        while not self.requested:
            time.sleep(0.01)

StopOnSigterm.on_step_begin = end_in_step_4
sys.exit(main("finetune", "", ("rec", "res"), sys.argv[1:]))
"""


def test_two_processes_whose_launcher_gets_sigterm_continue_with_the_same_command(tmp_path):
    """With all that makes a run differ: masks, synchronised batch norms, averaged weights, recomputed activations."""
    options = ["--stages.warm-up", "null", "--stages.all.max_steps", "8", "--stages.all.epochs", "2"]
    options += ["--stages.all.drop_path_rate", "0", "--run.sync_batch_norm", "--run.ema_decay", "0.9"]
    options += ["--run.gradient_checkpointing"]
    assert run("finetune", RES, tmp_path / "one", *options) == 0

    config = ["--config_file", str(CONFIGS / "multi_cpu.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    program = tmp_path / "terminated.py"
    program.write_text(TERMINATED)
    arguments = command("finetune", RES, tmp_path / "two", *options)
    patient = {**ENVIRONMENT, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}  # a busy machine may not save within 30 seconds
    stopped, continued = (
        subprocess.run([*LAUNCH, *config, str(file), *arguments], env=patient, capture_output=True, text=True)
        for file in (program, TRAINING / "finetune.py")
    )
    stage = tmp_path / "two" / "fine-tuning"
    sentence = f"finetune: stopped after step 4 of stage 'fine-tuning', which is saved in {stage}; the same command"
    assert stopped.returncode != 0 and stopped.stderr.count(sentence) == 1, stopped.stderr[-3000:]
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert (stage / "checkpoint-8" / "rng_state_1.pth").is_file()  # there were two

    states = [
        json.loads((tmp_path / run / "fine-tuning" / "checkpoint-8" / "trainer_state.json").read_text())
        for run in ("one", "two")
    ]
    expected, found = (world.curve(state["log_history"]) for state in states)
    assert len(found) == 8 and all(row.keys() == other.keys() for row, other in zip(expected, found))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    scores = [{row["step"]: row["eval_miou"] for row in s["log_history"] if "eval_miou" in row} for s in states]
    # A pixel of a mask that is as near to its threshold as the losses are to each other may fall on either side.
    assert list(scores[1]) == [6, 8] and scores[1] == pytest.approx(scores[0], abs=1e-3)


KILLED = """
import os, shutil, signal, sys
import torch
from oneref_hf.trainer import OneRefTrainer
from oneref_hf.trainer_callbacks import StopOnSigterm
from oneref_hf.training_command import main

torch.set_num_threads(1)
save, remove, move = OneRefTrainer._save_optimizer_and_scheduler, shutil.rmtree, os.replace
moment, places = None, set()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_step_begin(self, args, state, control, **kwargs):
    if moment == "between_saves" and state.global_step == 7:
        die()
    if moment.startswith("saving_again") and state.global_step == 5:
        os.kill(os.getpid(), signal.SIGTERM)

def save_optimizer(self, output_dir):
    if moment == "saving" and self.state.global_step == 6:
        die()
    save(self, output_dir)

def rmtree(folder, *others, **options):
    for place, _, files in os.walk(folder):
        if moment == "saving_again_removing" and "model.safetensors" in files:
            os.remove(os.path.join(place, "model.safetensors"))
            die()
    remove(folder, *others, **options)

def replace(old, new):
    if moment == "saving_again_replacing" and os.path.basename(new) == "checkpoint-6":
        if new in places:
            die()
        places.add(new)
    move(old, new)

StopOnSigterm.on_step_begin = on_step_begin
OneRefTrainer._save_optimizer_and_scheduler = save_optimizer
shutil.rmtree, os.replace = rmtree, replace
for moment in sys.argv[2].split():
    child = os.fork()  # importing takes longer than training
    if not child:
        os._exit(main("finetune", "", ("rec",), [*sys.argv[3:], "--output_dir", os.path.join(sys.argv[1], moment)]))
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), moment
"""


def test_a_kill_at_any_moment_leaves_what_the_same_command_continues(tmp_path):
    """SIGTERM in step 6, the last of its epoch, saves it before and after the evaluation that belongs to it."""
    moments = {
        "between_saves": ["checkpoint-3", "checkpoint-6"],
        "saving": ["checkpoint-3"],
        "saving_again_removing": ["checkpoint-3", "checkpoint-6"],
        "saving_again_replacing": ["checkpoint-3"],
    }
    arguments = [str(RECIPES / REC[0]), *REC[1:], "--smoke", "--stages.warm-up", "null", "--run.save_steps", "3"]
    arguments += ["--stages.all.max_steps", "8", "--stages.all.epochs", "2"]

    def train(folder):
        assert main("finetune", "", TASKS["finetune"], [*arguments, "--output_dir", str(tmp_path / folder)]) == 0
        stage = tmp_path / folder / "fine-tuning"
        log = json.loads((stage / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
        scores = {row["step"]: row["eval_mean_iou"] for row in log if "eval_mean_iou" in row}
        losses = [row["loss"] for row in log if "loss" in row]
        return OneRefForGrounding.from_pretrained(stage / "finished").state_dict(), scores, losses

    program = [sys.executable, "-c", KILLED, str(tmp_path), " ".join(moments), *arguments]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    weights, *history = train("straight")
    assert list(history[0]) == [6, 8] and len(history[1]) == 8
    for moment, checkpoints in moments.items():
        left = (tmp_path / moment / "fine-tuning").glob("checkpoint-*")
        assert sorted(path.name for path in left) == checkpoints, moment
        found, *others = train(moment)
        assert others == history, moment
        assert all(torch.equal(weights[name], found[name]) for name in weights), moment


def test_sigterm_ends_with_status_143_and_the_same_command_continues(tmp_path, monkeypatch, capsys):
    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options = ["--stages.all.max_steps", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSigterm, "on_step_begin", terminate)
        assert run("finetune", REC, tmp_path, *options) == 143
    assert capsys.readouterr().err.splitlines()[-1].endswith("the same command continues")
    assert [path.name for path in (tmp_path / "warm-up").glob("checkpoint-*")] == ["checkpoint-4"]
    assert run("finetune", REC, tmp_path, *options) == 0
    assert (tmp_path / "warm-up" / "checkpoint-5").is_dir() and (tmp_path / "results.json").is_file()


def test_sigterm_in_the_last_step_of_a_stage_does_not_begin_the_next(tmp_path, monkeypatch, capsys):
    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSigterm, "on_save", terminate, raising=False)
        assert run("finetune", REC, tmp_path) == 143
    assert "stopped after step 2 of stage 'warm-up'" in capsys.readouterr().err
    assert not (tmp_path / "fine-tuning").exists()
    assert run("finetune", REC, tmp_path) == 0
    assert not (tmp_path / "warm-up" / "checkpoint-3").exists()


def test_the_best_checkpoint_is_handed_on_rather_than_the_last(tmp_path, monkeypatch):
    evaluate = OneRefTrainer.evaluation_loop

    def worse_and_worse(self, *others, **options):
        scores = evaluate(self, *others, **options)
        scores.metrics["eval_accuracy@0.5"] = 1 / (1 + self.state.global_step)
        return scores

    monkeypatch.setattr(OneRefTrainer, "evaluation_loop", worse_and_worse)
    assert run("finetune", REC, tmp_path, "--stages.all.max_steps", "12", "--stages.all.epochs", "2") == 0
    for stage in ("warm-up", "fine-tuning"):
        best, last, finished = (
            OneRefForGrounding.from_pretrained(tmp_path / stage / name).state_dict()
            for name in ("checkpoint-6", "checkpoint-12", "finished")
        )
        assert all(torch.equal(finished[name], value) for name, value in best.items())
        assert not all(torch.equal(finished[name], value) for name, value in last.items())


@pytest.mark.parametrize("off, left", [("mim", "mlm"), ("mlm", "mim")])
def test_mrefm_of_one_kind_of_step_runs(off, left, tmp_path):
    options = ["--model.visual_tokenizer", "null"] if off == "mim" else []
    assert run("pretrain_mrefm", MREFM, tmp_path, f"--stages.all.losses.{off}", "false", *options) == 0
    for stage in ("warm-up", "pre-training"):
        state = json.loads((tmp_path / stage / "checkpoint-2" / "trainer_state.json").read_text())
        rows = world.curve(state["log_history"])
        assert len(rows) == 2 and all(left in row and off not in row for row in rows)
    assert (tmp_path / "pre-training" / "finished" / "model.safetensors").is_file()


STREAMED = ["--data.streaming", "true", "--stages.fine-tuning.max_steps", "4", "--run.save_steps", "2"]
STREAMED += ["--stages.fine-tuning.schedule", "cosine_per_step", "--run.log_steps", "1"]


@pytest.mark.parametrize("source", ["synthetic", "own data"])
def test_a_stream_is_saved_and_scored_by_steps(source, tmp_path, request):
    if source == "synthetic":
        arguments = command("finetune", REC, tmp_path / "run", "--stages.warm-up", "null")
    else:
        arguments = [*request.getfixturevalue("own_data")[1:], "--output_dir", str(tmp_path / "run")]
    assert main("finetune", "", TASKS["finetune"], [*arguments, *STREAMED]) == 0
    stage = tmp_path / "run" / "fine-tuning"
    log = json.loads((stage / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "eval_accuracy@0.5" in row] == [2, 4]
    rates = [row["learning_rate"] for row in log if "loss" in row]
    assert (stage / "checkpoint-2").is_dir() and rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    (scores,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert scores["val"]["samples"] == (10 if source == "synthetic" else 5)


def test_bfloat16_is_used_and_learns_nearly_the_same(tmp_path):
    for precision in ("float32", "bfloat16"):
        assert run("finetune", REC, tmp_path / precision, "--run.precision", precision) == 0
    exact, rounded = (first_losses(tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert rounded != pytest.approx(exact, rel=1e-5) and rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes_in(RECIPES).values(), ids=recipes_in(RECIPES))
def test_every_recipe_smokes(recipe, tmp_path):
    path, variant = recipe
    name = "pretrain_mrefm" if load_recipe(path, {"smoke": True}).task == "mrefm" else "finetune"
    assert run(name, (path.name, *(["--variant", variant] if variant else [])), tmp_path) == 0
    assert len(list(tmp_path.glob("*/finished/model.safetensors"))) == len(list(tmp_path.glob("*/curves.png"))) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, recipe, stage", [("finetune", RES, "fine-tuning"), ("pretrain_mrefm", MREFM, "warm-up")]
)
def test_a_compiled_run_learns_the_same(name, recipe, stage, tmp_path):
    options = ["--stages.all.drop_path_rate", "0", "--stages.all.max_steps", "6"]
    for how in ("false", "true"):
        assert run(name, recipe, tmp_path / how, "--run.compile", how, *options) == 0
    states = [tmp_path / how / stage / "checkpoint-6" / "trainer_state.json" for how in ("false", "true")]
    expected, found = (world.curve(json.loads(state.read_text())["log_history"]) for state in states)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


# A person's own data ------------------------------------------------------------------------------------------------
@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """A working directory with pictures, JSON Lines and a converted model."""
    monkeypatch.chdir(tmp_path)
    photos = Path("my_data", "photos")
    photos.mkdir(parents=True)
    for split, number in (("train", 12), ("val", 5)):
        rows = []
        for index, record in enumerate(world.records(number)):
            picture = f"photos/{split}{index}.png"
            record["image"].save(Path("my_data", picture))
            rows.append({"image": picture, "phrase": record["phrase"], "box": record["box"]})
        Path("my_data", f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixtures = ["--tokenizer", str(world.FIXTURES / "tiny.spm"), "--task", "grounding", "--output", "converted/tiny"]
    assert convert_oneref.main([str(world.FIXTURES / "mrefm_checkpoint.pth"), *fixtures]) == 0
    return [
        str(TRAINING / "finetune.py"),
        str(RECIPES / "own_data.yaml"),
        *("--model.init", "tiny", "--model.image_size", "64", "--run.workers", "0"),
        *("--stages.fine-tuning.epochs", "2", "--stages.fine-tuning.batch_size", "4"),
    ]


def test_own_data_becomes_a_fine_tuned_evaluated_and_pushed_model(own_data, tmp_path):
    with PushHub() as hub:
        hub_settings = {
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [*LAUNCH, "--config_file", str(CONFIGS / "one_process.yaml"), *own_data, "--push_to_hub", "me/my-model"],
            env={**ENVIRONMENT, **hub_settings, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "finished: outputs/own_data/fine-tuning/finished"
    finished = tmp_path / "outputs" / "own_data" / "fine-tuning" / "finished"

    ((repo_id, _, _),) = hub.commits
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, content in hub.repositories[repo_id].items():
        (pushed / name).write_bytes(content)
    assert repo_id == "me/my-model" and {path.name for path in finished.iterdir()} == set(os.listdir(pushed))
    trained, before = (
        OneRefForGrounding.from_pretrained(folder).state_dict() for folder in (pushed, "converted/tiny")
    )
    assert not torch.equal(trained["oneref.text_projection.weight"], before["oneref.text_projection.weight"])

    (scores,) = json.loads((tmp_path / "outputs" / "own_data" / "results.json").read_text()).values()
    arguments = ["--model", str(pushed), "--dataset", "my_data", "--split", "val", "--output", "scores"]
    assert script("evaluate").main(arguments) == 0
    expected = json.loads(Path("scores", "results.json").read_text())["splits"]["val"]["rec"]
    assert scores["val"]["samples"] == expected["samples"] == 5
    assert scores["val"]["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-6)
    card = (pushed / "README.md").read_text()
    assert f"| my_data | val | mean_iou | {expected['mean_iou']:g} |" in card
    assert 'pipeline("referring-expression", model="me/my-model")' in card


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("--push_to_hub", "me/my-model"), "push_to_hub: nobody is logged in to the Hub"),
        (("--evaluation.splits", "{my_data: [test]}"), "evaluation.splits: "),
        (("--stages.fine-tuning.batch_size", "32"), "has 12 records to train on, which is less than one batch"),
        (("--model.size", "base"), "'converted/tiny' is not of size base"),
    ],
)
def test_what_would_spoil_the_end_is_said_at_the_beginning(change, sentence, own_data, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    arguments = own_data[1:]
    if change[0] in arguments:
        place = arguments.index(change[0])
        del arguments[place : place + 2]
    assert main("finetune", "", TASKS["finetune"], [*arguments, *change]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("finetune: ") and sentence in error
    assert not list(Path("outputs").rglob("checkpoint-*"))


@pytest.mark.parametrize(
    "line, sentence",
    [
        (
            {"image": "gone.png", "phrase": "the cup", "box": [1, 2, 30, 40]},
            "train.jsonl, line 13: there is no picture",
        ),
        (
            {"image": "cut.png", "phrase": "the cup", "box": [1, 2, 30, 40]},
            "The record 'train.jsonl, line 13' cannot be",
        ),
    ],
)
def test_a_strict_run_stops_at_what_another_leaves_out(line, sentence, own_data, capsys):
    picture = Path("my_data", "photos", "train0.png")
    Path("my_data", "cut.png").write_bytes(picture.read_bytes()[:100])
    with Path("my_data", "train.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert main("finetune", "", TASKS["finetune"], [*own_data[1:], "--data.strict"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "finetune: " in error and sentence in error  # behind a progress bar, where there was one
    assert main("finetune", "", TASKS["finetune"], [*own_data[1:], "--output_dir", "outputs/lenient"]) == 0


def test_a_command_that_failed_before_its_first_step_may_be_corrected(own_data, capsys):
    arguments = own_data[1:]
    assert main("finetune", "", TASKS["finetune"], [*arguments, "--data.images", "my_dat"]) == 1
    assert "'my_dat' does not exist" in capsys.readouterr().err
    assert main("finetune", "", TASKS["finetune"], [*arguments, "--data.images", "my_data"]) == 0
    assert main("finetune", "", TASKS["finetune"], arguments) == 1
    assert "holds a run of another recipe" in capsys.readouterr().err


def test_what_cannot_be_scored_costs_no_training(own_data, capsys):
    """Records without a box are left out; of unreadable pictures the training makes do with others."""
    Path("my_data", "cut.png").write_bytes(Path("my_data", "photos", "train0.png").read_bytes()[:100])
    val = Path("my_data", "val.jsonl")
    before = val.read_text()
    first = json.loads(before.splitlines()[0])
    val.write_text(before + json.dumps({"image": first["image"], "phrase": "the cup"}) + "\n")
    arguments = own_data[1:]
    assert main("finetune", "", TASKS["finetune"], arguments) == 0
    results = json.loads(next(Path("outputs").rglob("results.json")).read_text())
    assert results["my_data"]["val"]["samples"] == len(before.splitlines())
    strict = [*arguments, "--data.strict", "--output_dir", "outputs/strict"]
    assert main("finetune", "", TASKS["finetune"], strict) == 1
    assert "have no box to score" in capsys.readouterr().err
    val.write_text(before + json.dumps({**first, "image": "cut.png"}) + "\n")
    broken = [*arguments, "--output_dir", "outputs/broken"]
    assert main("finetune", "", TASKS["finetune"], broken) == 1
    assert "cannot be used" in capsys.readouterr().err
    assert list(Path("outputs", "broken").rglob("finished")), "the model is trained"
    val.write_text(before)
    assert main("finetune", "", TASKS["finetune"], broken) == 0, "the same command goes on"


# Model --------------------------------------------------------------------------------------------------------------
def test_another_canvas_interpolates_the_positions():
    model = world.model("rec").eval()
    larger = resize_positions(world.model("rec").eval(), 96)
    assert larger.config.image_size == 96
    inputs = {"pixel_values": torch.rand(1, 3, 96, 96), "input_ids": torch.tensor([[0, 7, 2]])}
    with torch.no_grad():
        expected = model(**inputs, interpolate_pos_encoding=True).pred_boxes
        torch.testing.assert_close(larger(**inputs).pred_boxes, expected)


# Labels -------------------------------------------------------------------------------------------------------------
class KnownEmbeddings(OneRefModel):
    """Patches point along axis 0 inside the left half, axis 1 elsewhere; tokens as given."""

    def __init__(self, tokens):
        torch.nn.Module.__init__(self)
        self.config, self.tokens = world.model("rec").config, tokens

    def forward(self, **inputs):
        patches = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).repeat(4, 1)[None]
        return SimpleNamespace(patch_embeds=patches, token_embeds=self.tokens)


class KnownStates(Beit3Model):
    """The same as hidden states, behind that of the CLS token."""

    __init__ = KnownEmbeddings.__init__

    def forward(self, **inputs):
        known = KnownEmbeddings.forward(self)
        states = torch.cat([torch.tensor([[[-3.0, 4.0]]]), known.patch_embeds], dim=1)
        return SimpleNamespace(vision_last_hidden_state=states, text_last_hidden_state=known.token_embeds)


@pytest.mark.parametrize("known", [KnownEmbeddings, KnownStates])
def test_semantic_relation_is_the_similarity_with_the_region_within_the_phrase(known):
    angles = torch.tensor([0.0, 0.0, 90.0, 60.0, 10.0, 0.0, 0.0, 0.0])
    tokens = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=-1)[None]
    inputs = {
        "pixel_values": torch.zeros(1, 3, 64, 64),
        "input_ids": torch.zeros(1, 8, dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),  # BOS, three pieces, EOS
        "box_labels": torch.tensor([[0.25, 0.5, 0.5, 1.0]]),  # the left half
    }
    labels = semantic_relation_labels(known(tokens), inputs)
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0.0, 0.5, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", ["beit3", "oneref"])
def test_labels_become_a_column_that_training_reads(kind, tmp_path, capsys):
    finished = tmp_path / "model"
    net = world.model("rec")
    if kind == "beit3":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        net = Beit3Model(Beit3Config(vocab_size=216, image_size=64, patch_size=16, **sizes))
    net.save_pretrained(finished)
    world.processor().save_pretrained(finished)
    data = tmp_path / "data"
    data.mkdir()
    picture = world.FIXTURES / "coffee_210x140.png"
    shutil.copy(picture, data)
    rows = [{"image": picture.name, "phrase": "the cup", "box": [10, 10, 90, 90]} for _ in range(3)]
    (data / "broken.png").write_bytes(b"nothing")
    rows.append({"image": "broken.png", "phrase": "the cup", "box": [10, 10, 90, 90]})
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "labelled"
    arguments = ["--model", str(finished), "--dataset", str(data), "--output", str(output), "--device", "cpu"]
    assert label_semantic_relation.main(arguments) == 0
    assert "it is left out" in capsys.readouterr().err
    labelled = load_referring_dataset(output, "train")
    assert len(labelled) == 3 and labelled[0]["box"] == [10, 10, 90, 90]
    values = torch.tensor(labelled[0]["semantic_relation_labels"])
    assert values.shape == (62,) and values.max() == 1 and values.min() == 0
    model = (Beit3Model if kind == "beit3" else OneRefModel).from_pretrained(finished).eval()
    text = {"padding": "max_length", "max_length": 64}
    inputs = world.processor()(Image.open(picture), "the cup", boxes=[[10.0, 10.0, 90.0, 90.0]], **text)
    torch.testing.assert_close(values, semantic_relation_labels(model, inputs)[0], rtol=1e-3, atol=1e-4)
    assert label_semantic_relation.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_phrases_mean_one_detection():
    left, right = Detection("cup", 0.9, (0, 10, 20, 30)), Detection("cup", 0.8, (70, 12, 95, 32))
    twin = Detection("cup", 0.7, (1, 10, 21, 31))
    dog = Detection("dog", 0.6, (30, 50, 60, 90))
    kept = without_duplicates([twin, left, right, dog])
    assert kept == [left, right, dog]
    phrases = dict(pseudo_phrases(kept, (100, 100)))
    assert phrases == {
        "the cup on the left": left,
        "the cup on the right": right,
        "the smallest cup": left,
        "the biggest cup": right,
        "the dog": dog,
    }
    assert pseudo_phrases([left, twin], (100, 100)) == []


def tiny_detector(folder):
    """A random OWL-ViT that knows the letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], pad_token="a")
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(pieces), "pad_token_id": 0, "bos_token_id": 52, "eos_token_id": 53, **layers}
    set_seed(3)
    config = OwlViTConfig(
        text_config=text, vision_config={"image_size": 32, "patch_size": 8, **layers}, projection_dim=32
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def test_a_detector_of_transformers_makes_the_pseudo_labels(tmp_path, capsys):
    tiny_detector(tmp_path / "detector")
    (tmp_path / "pictures").mkdir()
    picture = Image.open(world.FIXTURES / "coffee_210x140.png").convert("RGB")
    picture.save(tmp_path / "pictures" / "a.png")
    arguments = ["--images", str(tmp_path / "pictures"), "--detector", str(tmp_path / "detector"), "--device", "cpu"]
    arguments += ["--classes", "cup", "dog", "--threshold", "0.01", "--output", str(tmp_path / "data")]
    assert make_pseudo_labels.main(arguments) == 0, capsys.readouterr().err
    records = load_referring_dataset(tmp_path / "data", "train_pseudo")

    # The model's own answers, without the pipeline.
    model = OwlViTForObjectDetection.from_pretrained(tmp_path / "detector").eval()
    processor = OwlViTProcessor.from_pretrained(tmp_path / "detector")
    boxes = []
    for word in ("cup", "dog"):
        with torch.no_grad():
            outputs = model(**processor(text=[[word]], images=picture, return_tensors="pt"))
        x, y, width, height = outputs.pred_boxes[0].unbind(-1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        boxes.extend((word, *box) for box in (corners * torch.tensor([210, 140, 210, 140])).tolist())
    assert len(records) > 0
    for record in records:
        near = [
            box
            for word, *box in boxes
            if word in record["phrase"] and all(abs(a - b) <= 1 for a, b in zip(box, record["box"]))
        ]
        assert near, (record["phrase"], record["box"])


def test_a_detector_that_the_pipeline_does_not_run_is_one_sentence(tmp_path, capsys):
    OmDetTurboConfig(text_config=CLIPTextConfig(), use_timm_backbone=False).save_pretrained(tmp_path / "detector")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    arguments = ["--images", str(tmp_path), "--detector", str(tmp_path / "detector"), "--classes", "cup"]
    assert make_pseudo_labels.main([*arguments, "--output", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("make_pseudo_labels: ") and "omdet-turbo" in error and "owlv2" in error


def test_pseudo_labels_load_as_a_split(tmp_path, capsys, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (100, 80)).save(pictures / "a.png")
    (pictures / "b.jpg").write_bytes(b"nothing")
    with suppress(OSError):  # where names must be UTF-8
        shutil.copy(pictures / "a.png", os.fsencode(pictures) + b"/\xff.png")
    box = {"xmin": 10, "ymin": 20, "xmax": 60, "ymax": 70}
    found = [{"label": "cup", "score": 0.9, "box": box}, {"label": "dog", "score": 0.1, "box": box}]
    monkeypatch.setattr(make_pseudo_labels, "_detector", lambda options: lambda picture, classes: found)
    output = tmp_path / "data"
    arguments = ["--images", str(pictures), "--detector", "any", "--classes", "cup", "dog", "--output", str(output)]
    assert make_pseudo_labels.main(arguments) == 0
    captured = capsys.readouterr()
    assert "b.jpg" in captured.err and "1 phrases" in captured.out
    (record,) = load_referring_dataset(output, "train_pseudo")
    assert record["phrase"] == "the cup" and record["box"] == [10, 20, 60, 70]
    assert record["image"].size == (100, 80)
    assert make_pseudo_labels.main([*arguments[:-1], str(tmp_path / "none"), "--threshold", "0.95"]) == 1
    assert capsys.readouterr().err.strip().endswith("lower --threshold.") and not list((tmp_path / "none").iterdir())
