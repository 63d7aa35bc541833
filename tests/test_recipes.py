# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Every recipe renders, the 59 training commands of the original are all there, and what does not fit says so.

`recipe_facts.json` is the original's side: one row per command, mistakes included. `DIFFERENCES` changes the rows
where a recipe means something else; `training/recipes/README.md` gives the reasons under the same ids.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from manifest import load_manifest
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from oneref_hf import Beit3Config, Beit3Model, OneRefConfig, VqkdConfig
from oneref_hf.configuration_oneref import DEFAULT_LOSS_WEIGHTS
from oneref_hf.data.augmentation import ReferringAugmentation
from oneref_hf.metrics import RecMetric, ResMetric
from oneref_hf.recipes import MODEL_SIZES, RecipeError, load_recipe, recipes_in
from oneref_hf.training_run import training_arguments


TRAINING = Path(__file__).parents[1] / "training"
FOLDER = TRAINING / "recipes"
FACTS = json.loads((Path(__file__).parent / "fixtures" / "recipe_facts.json").read_text(encoding="utf-8"))
RECIPES = recipes_in(FOLDER)
OURS = {"own_data", "scenes_mrefm", "scenes_rec_res"}  # no script of the original behind them

DATASETS = {
    "unc": "refcoco",
    "unc+": "refcoco-plus",
    "gref_umd": "refcocog",
    "referit": "referit",
    "flickr": "flickr",
    "mixup_with_refc": "mixture-refc",
    "mixup_with_refc_referit": "mixture-refc-referit",
}
STAGES = {"warmup": "warm-up", "finetune": "fine-tuning", "pretrain": "pre-training"}
LOSSES = {
    "bbox_l1": "box_l1",
    "giou": "box_giou",
    "region_focal": "similarity_focal",
    "region_dice": "similarity_dice",
    "seg_focal": "mask_focal",
    "seg_dice": "mask_dice",
    "contrastive": "contrastive",
    "mim_ce": "mim",
    "mim_vts": "visual_relation",
    "mlm": "mlm",
    "mlm_sts": "semantic_relation",
}


@functools.cache
def load(name: str, **overrides):
    path, variant = RECIPES[name]
    return load_recipe(path, {**({"variant": variant} if variant else {}), **overrides})


# The original's rows -----------------------------------------------------------------------------------------------
def rows() -> list[dict]:
    """Every row with the values it shares with the others and the id `row`."""
    found = []
    for number, row in enumerate(FACTS["train"]):
        shared = FACTS["every_mrefm_row"] if row["setting"] == "mrefm_pretraining" else {}
        found.append({"row": number, **FACTS["every_row"], **shared, **row})
    return found


def dataset_of(row: dict) -> str:
    return DATASETS[row["annotations"] if row["dataset"] == "mixup" else row["dataset"]]


def recipe_of(row: dict) -> str:
    """The naming scheme, written once more."""
    if row["setting"] == "mrefm_pretraining":
        return f"mrefm_{row['task']}_{row['size']}" + ("_four_nodes" if row["nodes"] == 4 else "")
    setting = {"single_dataset": "single", "mixup": "mixed"}[row["setting"]]
    ending = "" if row["dataset"] == "mixup" else "_" + dataset_of(row).replace("-", "_")
    return f"{row['task']}_{setting}_{row['size']}{ending}"


def res_large_warmup(row: dict) -> dict:
    if row["script"] == "train_res_single_dataset_finetuning_large" and row["stage"] == "warmup":
        assert row["init"]["ref"] == "beit3_base_indomain_patch16_224"
        return {"init": {"kind": "beit3", "ref": "beit3_large_indomain_patch16_224"}}
    return {}


def own_handover(row: dict) -> dict:
    """RefCOCOg's warm-up goes where its fine-tuning looks for it."""
    if row["stage"] == "warmup" and row["dataset"] == "gref_umd":
        assert row["out"].endswith("v001/unc+")
        return {"out": row["out"].replace("unc+", "gref_umd")}
    return {}


# id -> changes to a row; ids without a change of values are checked by a test of their own.
DIFFERENCES = {
    "res_large_warmup_from_base_weights": res_large_warmup,
    "gref_umd_warmup_slot": own_handover,
    "shared_output_slots": None,
    "mrefm_output_not_where_mixup_reads": None,
    "res_base_extra_datasets": None,
    "best_checkpoint_may_be_missing": None,
    "no_tokenizer_path_in_single_dataset_scripts": None,
}
KEPT = {"mixed_rec_data", "mrefm_relation_losses_off", "multi_node_differs"}


def meant(row: dict) -> dict:
    for change in filter(None, DIFFERENCES.values()):
        row = {**row, **change(row)}
    return row


def expected(row: dict) -> dict:
    """What the recipe and its stage must say for a row."""
    mrefm = row["setting"] == "mrefm_pretraining"
    start = {
        "beit3": f"beit3-{row['init']['ref'].split('_')[1]}" if row["init"]["kind"] == "beit3" else None,
        "mrefm": f"mrefm-{row['task']}-{row['size']}",
        "previous_stage": "last" if mrefm else "best",
        "none": "fresh",
    }[row["init"]["kind"]]
    weights = {LOSSES[name]: FACTS["loss_weights"][name] for name in row["losses"]}
    return {
        "task": "mrefm" if mrefm else row["task"],
        "size": row["size"],
        "dataset": dataset_of(row),
        "start": start,
        "image_size": row["image_size"],
        "max_text_length": row["max_query_len"],
        "workers": row["num_workers"],
        "train_split": {"full": "train"}[row["sup_type"]],
        "target_masks": {"box": "box", "polygon": "segmentation"}[row["target_mask"]],
        "augmentation": {
            "crop": "crop" in row["augment"],
            "num_scales": FACTS["augmentation"]["scales_mrefm" if mrefm else "scales"]
            if "scale" in row["augment"]
            else 1,
            "translate": "translate" in row["augment"],
            "color_jitter": FACTS["augmentation"]["color_jitter"],
            "blur": FACTS["augmentation"]["blur"],
        },
        "masking": {
            "strategy": "referring",
            "inside_ratio": row["dynamic_mask_ratio"],
            "outside_ratio": row["mim_mask_ratio"],
            "text_ratio": row["text_mask_prob"],
            "image_ratio": None,
            "parser": "en_core_web_md",
        }
        if mrefm
        else None,
        "visual_tokenizer": "vqkd" if mrefm else None,
        "freeze_backbone": row["frozen_backbone"],
        "epochs": row["epochs"],
        "max_steps": None,
        "learning_rate": row["lr"],
        "schedule": {"cosine": "cosine_per_epoch"}[row["lr_schedule"]],
        "drop_path_rate": row["drop_path"],
        "batch_size": row["global_batch"],
        "original_split": (row["batch_per_gpu"], row["update_freq"]),
        "losses": {name: weights.get(name, 0.0) for name in DEFAULT_LOSS_WEIGHTS},
        "optimizer": {
            "name": row["optimizer"],
            "weight_decay": row["weight_decay"],
            "max_grad_norm": row["clip_max_norm"],
        },
        "seed": row["seed"],
        "precision": "float32",
        "metric": None if mrefm else {"rec": "accuracy@0.5", "res": "miou"}[row["task"]],
        "validation": None if mrefm else "val",
        "keep": "last" if mrefm else "best",
    }


def actual(name: str, row: dict) -> dict:
    recipe = load(name)
    (stage,) = (stage for stage in recipe.stages if stage.name == STAGES[row["stage"]])
    data = recipe.data
    return {
        "task": recipe.task,
        "size": recipe.model.size,
        "dataset": data.dataset,
        "start": recipe.model.init if stage.init == "model" else stage.init,
        "image_size": recipe.model.image_size,
        "max_text_length": data.max_text_length,
        "workers": recipe.run.workers,
        "train_split": data.train_split,
        "target_masks": data.target_masks,
        "augmentation": dataclasses.asdict(data.augmentation),
        "masking": data.masking and dataclasses.asdict(data.masking),
        "visual_tokenizer": recipe.model.visual_tokenizer,
        "freeze_backbone": stage.freeze_backbone,
        "epochs": stage.epochs,
        "max_steps": stage.max_steps,
        "learning_rate": stage.learning_rate,
        "schedule": stage.schedule,
        "drop_path_rate": stage.drop_path_rate,
        "batch_size": stage.batch_size,
        "original_split": stage.split_batch(row["nodes"] * row["gpus_per_node"]),
        "losses": stage.losses,
        "optimizer": dataclasses.asdict(recipe.optimizer),
        "seed": recipe.seed,
        "precision": recipe.run.precision,
        "metric": recipe.evaluation.metric,
        "validation": recipe.evaluation.split,
        "keep": recipe.evaluation.keep,
    }


def test_the_folder_holds_34_recipes_in_15_files():
    assert len(RECIPES) == 34 and len({path for path, _ in RECIPES.values()}) == 15
    files = {path for path in FOLDER.rglob("*.yaml") if path.parent.name != "templates"}
    assert files == {path for path, _ in RECIPES.values()}
    assert {name for name, (_, variant) in RECIPES.items() if variant is None} == {
        "rec_mixed_base",
        "rec_mixed_large",
        "res_mixed_base",
        "res_mixed_large",
        "mrefm_rec_base",
        "mrefm_rec_large",
        "mrefm_res_base",
        "mrefm_res_large",
        *OURS,
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['row']}-{recipe_of(row)}-{row['stage']}")
def test_every_training_command_of_the_original_is_a_stage_of_a_recipe(row):
    assert actual(recipe_of(row), row) == expected(meant(row))


def test_there_are_59_commands_and_every_stage_but_two_has_one():
    commands = {(recipe_of(row), STAGES[row["stage"]]) for row in rows()}
    stages = {(name, stage.name) for name in RECIPES for stage in load(name).stages if name not in OURS}
    assert len(FACTS["train"]) == len(commands) == 59
    # res_base_extra_datasets: the warm-up that the script leaves out.
    assert stages - commands == {("res_single_base_referit", "warm-up"), ("res_single_base_flickr", "warm-up")}
    assert commands <= stages


def test_added_warm_ups_are_like_the_others():
    other = load("res_single_base_refcoco").stages[0]
    for name in ("res_single_base_referit", "res_single_base_flickr"):
        recipe = load(name)
        assert recipe.stages[0] == other and recipe.data.target_masks == "box" and recipe.evaluation.splits == {}


def test_a_stage_starts_from_the_one_before_and_outputs_never_meet():
    finished = {(row["script"], row["out"]) for row in map(meant, rows()) if row["stage"] == "warmup"}
    for row in map(meant, rows()):
        if row["init"]["kind"] == "previous_stage" and "warm-up missing" not in skipped(row):
            slot = row["init"]["ref"].rpartition("/")[0]
            assert (row["script"], slot) in finished and slot.endswith(row["out"].rpartition("/")[2])
    outputs = [load(name, smoke=smoke).output_dir for name in RECIPES for smoke in (False, True)]
    assert len(set(outputs)) == 2 * len(RECIPES)


def skipped(row: dict) -> str:
    extra = row["task"] == "res" and row["size"] == "base" and row["dataset"] in ("referit", "flickr")
    return "warm-up missing" if extra else ""


def test_values_that_the_configuration_holds_are_the_original_s():
    config, shared = OneRefConfig(), FACTS["every_mrefm_row"]
    assert (config.mlm_label_smoothing, config.mlm_drop_worst_ratio) == (
        shared["label_smoothing"],
        shared["drop_worst_ratio"],
    )
    assert config.mlm_drop_worst_after == shared["drop_worst_after"]
    assert config.visual_vocab_size == VqkdConfig().codebook_size == shared["codebook_size"]
    assert VqkdConfig().codebook_dim == shared["codebook_dim"]
    assert config.vocab_size == FACTS["every_row"]["vocab_size"]
    defaults = Beit3Config()
    assert MODEL_SIZES["base"] == {key: getattr(defaults, key) for key in MODEL_SIZES["base"]}
    assert MODEL_SIZES["large"] == {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }


def test_finished_models_are_scored_as_the_original_scores_them():
    """80 commands: 8 training scripts with the splits of 5 (REC) or 3 (RES) data sets."""
    wanted = {}
    for row in FACTS["evaluation"]:
        held = row["checkpoint"].rpartition("/")[2]  # slots are named after the training data
        name = recipe_of({**row, "dataset": held, "annotations": "mixup_with_refc"})
        wanted.setdefault(name, {})[DATASETS[row["dataset"]]] = row["splits"]
    assert sum(len(row["splits"]) for row in FACTS["evaluation"]) == 80
    found = {name: load(name).evaluation.splits for name in RECIPES if name not in OURS}
    assert {name: splits for name, splits in found.items() if splits} == wanted


def test_names_of_other_places_exist_there():
    manifest = load_manifest()
    models = {row.name for row in manifest}
    datasets = {entry.id: entry.counts for entry in manifest.datasets.values()}
    assert {RecMetric.primary_metric, ResMetric.primary_metric} == {"accuracy@0.5", "miou"}
    for name in RECIPES:
        recipe = load(name)
        if not name.startswith("scenes_"):
            assert recipe.model.init in models or recipe.model.init == "fresh"
            assert recipe.model.visual_tokenizer in {*models, None}
        if name not in OURS:
            assert recipe.data.train_split in datasets[recipe.data.dataset]
            for dataset, splits in recipe.evaluation.splits.items():
                assert set(splits) <= set(datasets[dataset])
        ReferringAugmentation(recipe.model.image_size, **dataclasses.asdict(recipe.data.augmentation))


def test_recipes_and_released_models_belong_together():
    released = {row.recipe: row for row in load_manifest() if row.recipe}
    without_weights = {"mrefm_rec_base_four_nodes", "res_single_base_referit", "res_single_base_flickr"}
    assert set(released) == set(RECIPES) - OURS - without_weights
    for name, row in released.items():
        recipe = load(name)
        assert recipe.model.size == row.size and name.startswith(
            ("mrefm_" if recipe.task == "mrefm" else "") + row.task
        )
        assert load_manifest().dataset(row.dataset).id == recipe.data.dataset


# Headers and the README ---------------------------------------------------------------------------------------------
def header(path: Path) -> str:
    return re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_header_says_what_is_needed_how_to_start_and_what_to_expect(path):
    text = header(path)
    recipes = {name: load(name) for name, (file, _) in RECIPES.items() if file == path}
    script = "pretrain_mrefm" if "mrefm" in path.stem else "finetune"
    assert f"training/{script}.py" in text and f"training/recipes/{path.name}" in text
    assert "needs" in text and ("not yet run" in text) != path.stem.startswith("scenes_")
    for name, recipe in recipes.items():
        variant = RECIPES[name][1]
        assert variant is None or re.search(rf"#   variants .*\b{variant}\b", text)
        assert recipe.model.init == "fresh" or recipe.model.init in text
    rows_of_file = [row for row in load_manifest() if row.recipe in recipes]
    metric = "miou" if path.stem.startswith("res") else "acc"
    scores = {f"{r.value:.2f}" for row in rows_of_file for r in row.results if r.metric == metric}
    assert set(re.findall(r"\d\d\.\d\d", text)) == scores


def test_the_readme_lists_the_differences_and_every_file():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    differing, kept = text.split("Kept on purpose")
    listed = {part: set(re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE)) for part in (differing, kept)}
    assert listed[differing] == set(DIFFERENCES) and listed[kept] == KEPT
    assert set(DIFFERENCES) | KEPT <= set(FACTS["anomalies"])
    assert all(f"`{path.name}`" in text for path in FOLDER.glob("*.yaml"))


def test_own_data_is_a_recipe_of_ten_lines():
    lines = (FOLDER / "own_data.yaml").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 10
    recipe = load("own_data")
    assert [stage.name for stage in recipe.stages] == ["fine-tuning"]
    assert recipe.stages[0].init == "model" and not recipe.stages[0].freeze_backbone


@pytest.mark.parametrize(
    "name, arguments, splits",
    [
        ("own_data", [], {"my_data": ["val"]}),
        ("own_data", ["--data.dataset", "photos.jsonl"], {"photos.jsonl": ["val"]}),
        ("own_data", ["--data.dataset", "x", "--evaluation.splits", "{y: [test]}"], {"y": ["test"]}),
        ("rec_single_base_refcoco", ["--data.dataset", "mine"], {"mine": ["val", "testA", "testB"]}),
        (
            "rec_mixed_base",
            ["--data.dataset", "mine"],
            {
                "refcoco": ["val", "testA", "testB"],
                "refcoco-plus": ["val", "testA", "testB"],
                "refcocog": ["val", "test"],
            },
        ),
    ],
)
def test_scores_follow_the_data_set_that_they_were_of(name, arguments, splits):
    path, variant = RECIPES[name]
    recipe = load_recipe(path, [*(["--variant", variant] if variant else []), *arguments])
    assert recipe.evaluation.splits == splits and recipe.evaluation.dataset is None


def test_a_file_that_extends_one_brings_its_data_set_to_the_scores(tmp_path):
    base = write(tmp_path, "base", data={"dataset": "old"}, evaluation={"splits": {"old": ["val"], "other": ["test"]}})
    assert load_recipe(base).evaluation.splits == {"old": ["val"], "other": ["test"]}
    path = write(tmp_path, extends=base.name, data={"dataset": "new"})
    assert load_recipe(path).evaluation.splits == {"new": ["val"], "other": ["test"]}
    assert load_recipe(path, {"data.dataset": "newest"}).evaluation.splits == {"newest": ["val"], "other": ["test"]}


def test_a_data_set_that_is_scored_already_keeps_all_its_splits(tmp_path):
    scored = {"old": ["val", "testA"], "new": ["val", "test"]}
    path = write(tmp_path, data={"dataset": "old"}, evaluation={"splits": scored})
    assert load_recipe(path, {"data.dataset": "new"}).evaluation.splits == {"new": ["val", "testA", "test"]}


@pytest.mark.parametrize("template", ["res", "rec_res"])
def test_own_data_with_masks(tmp_path, template):
    text = (FOLDER / "own_data.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("extends: templates/rec.yaml", f"extends: {FOLDER}/templates/{template}.yaml"))
    recipe = load_recipe(path)
    boxes = {"box_l1", "box_giou", "similarity_focal", "similarity_dice"} if template == "rec_res" else set()
    active = {name for name, weight in recipe.stages[0].losses.items() if weight}
    assert active == boxes | {"mask_focal", "mask_dice"}
    assert recipe.data.target_masks == "segmentation" and recipe.evaluation.metric == "miou"
    assert recipe.trained_on_masks_only == (template == "res")


# Smoke runs ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECIPES)
def test_a_smoke_run_is_tiny_and_needs_nothing(name):
    real, smoke = load(name), load(name, smoke=True)
    assert smoke.smoke and not real.smoke
    assert smoke.model.size == "tiny" and smoke.model.init == "fresh" and smoke.data.dataset == "synthetic"
    assert smoke.model.visual_tokenizer in (None, "fresh") and smoke.data.images is smoke.data.columns is None
    assert smoke.evaluation.dataset is None and set(smoke.evaluation.splits) <= {"synthetic"}
    assert [(stage.max_steps, stage.batch_size) for stage in smoke.stages] == [(2, 8)] * len(real.stages)
    for before, after in zip(real.stages, smoke.stages):
        same = ("name", "init", "freeze_backbone", "learning_rate", "drop_path_rate", "schedule", "losses")
        assert all(getattr(before, field) == getattr(after, field) for field in same)
    assert (real.task, real.data.target_masks, real.data.masking) == (
        smoke.task,
        smoke.data.target_masks,
        smoke.data.masking,
    )
    assert smoke.output_dir == f"outputs/smoke/{name}"


def test_a_file_of_variants_smokes_without_choosing_one_and_trains_only_with_one():
    path = FOLDER / "rec_single_base.yaml"
    assert load_recipe(path, ["--smoke"]).name == "rec_single_base"
    with pytest.raises(RecipeError, match=r"choose one with --variant: refcoco, refcoco_plus, refcocog, referit, f"):
        load_recipe(path)


def test_a_smoke_run_never_writes_where_the_real_one_does(tmp_path):
    path = write(tmp_path, output_dir="results/best")
    assert load_recipe(path).output_dir == "results/best"
    assert load_recipe(path, ["--smoke"]).output_dir == "outputs/smoke/recipe"
    assert load_recipe(path, ["--smoke", "--output_dir", "here"]).output_dir == "here"


# Reading ------------------------------------------------------------------------------------------------------------
def write(folder: Path, name: str = "recipe", **values) -> Path:
    values = {"extends": str(FOLDER / "templates" / "rec.yaml"), **values}
    values.setdefault("model", {"size": "base", "init": "beit3-base"})
    values.setdefault("data", {"dataset": "refcoco"})
    values.setdefault("stages", {"fine-tuning": {"batch_size": 16, "batch_size_per_device": 16}})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def test_later_wins_file_variant_command_line(tmp_path):
    rate = "fine-tuning"
    base = write(tmp_path, "base", seed=1, stages={rate: {"batch_size": 16, "batch_size_per_device": 4}})
    path = write(
        tmp_path,
        extends=base.name,
        stages={rate: {"batch_size": 32}},
        variants={"small": {"seed": 3, "stages": {rate: {"batch_size": 8}}}},
    )
    assert (load_recipe(path).seed, load_recipe(path).stages[1].batch_size) == (1, 32)
    small = load_recipe(path, ["--variant", "small"])
    assert (small.name, small.seed, small.stages[1].batch_size) == ("recipe_small", 3, 8)
    assert small.stages[1].batch_size_per_device == 4 and small.stages[1].epochs == 20
    changed = load_recipe(path, ["--variant=small", "--seed", "4", f"--stages.{rate}.batch_size=64"])
    assert (changed.seed, changed.stages[1].batch_size) == (4, 64)


def test_all_reaches_every_stage_and_yields_to_what_is_named_beside_it(tmp_path):
    stages = {"all": {"batch_size": 8, "batch_size_per_device": 8}, "warm-up": {"batch_size": 4}}
    recipe = load_recipe(write(tmp_path, stages=stages))
    assert [stage.batch_size for stage in recipe.stages] == [4, 8]
    recipe = load_recipe(
        write(tmp_path, stages=stages), ["--stages.all.batch_size", "2", "--stages.all.losses.box_l1=0"]
    )
    assert [stage.batch_size for stage in recipe.stages] == [2, 2]
    assert [stage.losses["box_l1"] for stage in recipe.stages] == [0.0, 0.0]
    assert [stage.losses["box_giou"] for stage in recipe.stages] == [1.0, 1.0]


def test_a_stage_of_null_is_left_out_and_the_next_starts_from_the_model(tmp_path):
    recipe = load_recipe(write(tmp_path), ["--stages.warm-up", "null"])
    assert [(stage.name, stage.init) for stage in recipe.stages] == [("fine-tuning", "model")]


def test_values_of_the_command_line_are_read_as_the_recipe_wants_them(tmp_path):
    arguments = ["--stages.warm-up.learning_rate", "1e-4", "--data.images", "123", "--data.strict"]
    arguments += ["--data.columns", "{phrase: caption, box_xywh: bbox}", "--evaluation.splits", "{mine: [val, test]}"]
    arguments += ["--run.save_steps", "null", "--stages.all.losses.contrastive", "0.5", "--run.precision", "bfloat16"]
    recipe = load_recipe(write(tmp_path), arguments)
    assert recipe.stages[0].learning_rate == 1e-4 and recipe.data.images == "123" and recipe.data.strict is True
    assert recipe.data.columns == {"phrase": "caption", "box_xywh": "bbox"}
    assert recipe.evaluation.splits == {"mine": ["val", "test"]} and recipe.run.save_steps is None
    assert recipe.stages[1].losses["contrastive"] == 0.5 and recipe.run.precision == "bfloat16"
    same = load_recipe(
        write(tmp_path), {"stages.warm-up.learning_rate": 1e-4, "data": {"images": "x"}, "smoke": False}
    )
    assert same.stages[0].learning_rate == 1e-4 and same.data.images == "x"


@pytest.mark.parametrize("name", ["rec_single_base_refcoco", "mrefm_rec_base_four_nodes", "own_data"])
def test_a_recipe_written_out_is_the_same_recipe(tmp_path, name):
    recipe = load(name, **{"stages.all.learning_rate": 1e-7})
    assert {stage.learning_rate for stage in recipe.stages} == {1e-7}
    path = tmp_path / "written.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_a_batch_is_the_same_on_any_number_of_processes():
    stage = load("rec_single_base_refcoco").stages[1]
    splits = {n: stage.split_batch(n) for n in (1, 2, 8, 16, 64)}
    assert splits == {1: (24, 8), 2: (24, 4), 8: (24, 1), 16: (12, 1), 64: (3, 1)}
    assert dataclasses.replace(stage, batch_size=20, batch_size_per_device=8).split_batch(2) == (5, 2)
    with pytest.raises(
        RecipeError, match=r"batch of 192 samples of stage 'fine-tuning' does not divide by 5 processes"
    ):
        stage.split_batch(5)


def test_names_are_looked_up_among_what_was_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load("rec_single_base_refcoco")
    assert recipe.locate("beit3-base") == "beit3-base"
    (tmp_path / "converted" / "beit3-base").mkdir(parents=True)
    assert recipe.locate("beit3-base") == "converted/beit3-base"
    (tmp_path / "beit3-base").mkdir()
    assert recipe.locate("beit3-base") == "beit3-base" and recipe.locate("owner/name") == "owner/name"


# What does not fit --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stages.fine-tuning.lr", "1"], "unknown key 'stages.fine-tuning.lr'; did you mean 'learning_rate'?"),
        (["--learning_rate", "1"], "unknown key 'learning_rate'; did you mean 'stages.all.learning_rate'?"),
        (["--data.imags", "x"], "unknown key 'data.imags'; did you mean 'images'?"),
        (["--stages.all.losses.box_iou", "1"], "unknown key 'stages.all.losses.box_iou'; did you mean 'box_giou'?"),
        (["--stages.finetuning.epochs", "3"], "there is no stage 'finetuning'; did you mean 'fine-tuning'?"),
        (["--stages.warm-up.init", "x"], "unknown key 'stages.warm-up.init'; did you mean 'model.init'?"),
        (["--stages.warm-up.colour", "x"], "unknown key 'stages.warm-up.colour'; known are freeze_backbone,"),
        (["--variant", "big"], "has no variant 'big'; known are none."),
        (["--seed", "x"], "seed: expected a whole number, found 'x'."),
        (["--seed", "1.0"], "seed: expected a whole number, found 1.0."),
        (["--stages.warm-up.freeze_backbone", "1"], "freeze_backbone: expected true or false, found 1."),
        (["--stages.warm-up.learning_rate", "fast"], "learning_rate: expected a number, found 'fast'."),
        (["--stages.warm-up.learning_rate", "nan"], "learning_rate: expected a number, found 'nan'."),
        (
            ["--stages.warm-up.learning_rate", "[1"],
            "The value of --stages.warm-up.learning_rate, '[1', cannot be read.",
        ),
        (["--run.precision", "fp8"], "run.precision: expected float32 or bfloat16, found 'fp8'."),
        (["--data.columns", "[1]"], "data.columns: expected keys and values or text or null, found [1]."),
        (["--evaluation.splits", "{a: b}"], "evaluation.splits.a: expected a list, found 'b'."),
        (["--data", "3"], "expected keys and values in data, found 3."),
        (["--smoke", "maybe"], "smoke: expected true or false, found 'maybe'."),
        (["--data.augmentation.color_jitter", "2"], "color_jitter is 2.0; it must be between 0 and 1."),
        (["--stages.warm-up.epochs", "0"], "stages.warm-up.epochs is 0; it must be at least 1."),
        (["--model.image_size", "100"], "model.image_size is 100; it must be a multiple of 16."),
        (["--run.ema_decay", "1"], "run.ema_decay is 1.0; it must lie between 0 and 1."),
        (["--seed", "5000000000"], "seed is 5000000000; it must be between 0 and 4294967295."),
        (
            ["--data.dataset", "synthetic", "--evaluation.split", "testA"],
            "The data set synthetic has no split 'testA', only train and val;",
        ),
        (["--stages.all.losses.box_l1", "-1"], "stages.warm-up.losses.box_l1 is -1; a weight is at least 0."),
        (["--stages.all.losses.contrastive"], "losses.contrastive has no default weight; give a number."),
        (["--stages.all.losses.mask_dice"], "losses.mask_dice needs a head that task rec lacks."),
        (["--stages.warm-up.losses", "{box_l1: 0, box_giou: 0}"], "stages.warm-up.losses: at least one must be on."),
        (["--stages.all.losses.mim"], "losses.mim needs a head that task rec lacks."),
        (["--stages", "null"], "stages: at least one is needed."),
        (["--stages.new.epochs", "3"], "there is no stage 'new'"),
        (["--evaluation", "null"], "evaluation: expected keys and values, found None."),
        (["--evaluation.metric", "miou"], "evaluation.metric: task rec has no miou."),
        (
            ["--evaluation.split", "null"],
            "evaluation.keep is best, which needs evaluation.metric and evaluation.split.",
        ),
        (
            ["--data.streaming"],
            "data.streaming: a stream has no epochs; set stages.warm-up.max_steps and run.save_steps",
        ),
        (["--data.streaming", "--stages.all.max_steps", "9", "--run.save_steps", "3"], "schedule to cosine_per_step."),
        (["--task", "mrefm"], "data.masking is needed for task mrefm, and for no other."),
        (["--task", "res"], "evaluation.metric: task res has no accuracy@0.5."),
        (["--data.dataset", "null"], "data.dataset is missing"),
        (
            ["--model.size", "null", "--model.init", "fresh"],
            "model.size is missing; something fresh needs one (tiny, ",
        ),
        (["--model.size", "huge"], "model.size: expected tiny or small or base or large, found 'huge'."),
        (["seed", "1"], "Expected --key value, found 'seed'."),
        (["--seed", "1", "--seed", "2"], "--seed is given twice."),
        (["--data.images", "a", "--data", "{images: b}"], "set both 'data' as a whole and 'data.images'"),
        (["--data", "{images: b}", "--data.images", "a"], "set both 'data' as a whole and 'data.images'"),
    ],
)
def test_an_override_that_does_not_fit_says_so(tmp_path, arguments, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_mrefm_needs_masking_and_a_tokenizer_for_its_labels():
    path = FOLDER / "mrefm_rec_base.yaml"
    with pytest.raises(RecipeError, match=r"data.masking is needed for task mrefm, and for no other"):
        load_recipe(path, ["--data.masking", "null"])
    with pytest.raises(RecipeError, match=r"losses.mim needs model.visual_tokenizer"):
        load_recipe(path, ["--model.visual_tokenizer", "null"])
    ablated = load_recipe(path, ["--model.visual_tokenizer", "null", "--stages.all.losses.mim", "false"])
    assert all(stage.losses["mim"] == 0 and stage.losses["mlm"] == 1 for stage in ablated.stages)


def test_masked_words_cannot_be_streamed():
    path = FOLDER / "mrefm_rec_base.yaml"
    with pytest.raises(RecipeError, match=r"stages.warm-up.losses.mlm cannot stream, .* set data.streaming to false"):
        load_recipe(path, ["--data.streaming"])
    by_steps = ["--stages.all.max_steps", "9", "--stages.all.schedule", "cosine_per_step", "--run.save_steps", "3"]
    with pytest.raises(RecipeError, match="mlm cannot stream"):
        load_recipe(path, ["--data.streaming", *by_steps])
    assert load_recipe(path, ["--data.streaming", "--stages.all.losses.mlm", "false", *by_steps]).data.streaming


@pytest.mark.parametrize(
    "text, message",
    [
        ("extends: nothing.yaml", "The recipe {folder}/nothing.yaml cannot be read: No such file or directory."),
        ("extends: recipe.yaml", "{folder}/recipe.yaml extends itself"),
        ("extends: [1]", "extends names one file or a list of files, not [1]"),
        ("seed: [", "{folder}/recipe.yaml is not valid YAML"),
        ("seed: 2024-13-45", "{folder}/recipe.yaml is not valid YAML"),
        ("seed: &a [*a]", "{folder}/recipe.yaml is not valid YAML"),
        ("", "{folder}/recipe.yaml: expected keys and values, found None."),
        ("- seed", "{folder}/recipe.yaml: expected keys and values, found ['seed']."),
        ("seed: 1\nseed: 2", "{folder}/recipe.yaml is not valid YAML: the key 'seed' stands twice in one section."),
        ("1: 2", "{folder}/recipe.yaml: unknown key '1'"),
        ("variants: {a: {data: {datset: x}}}", "unknown key 'variants.a.data.datset'; did you mean 'dataset'?"),
        ("smoke: {variants: {}}", "unknown key 'smoke.variants'"),
        ("seed: 1", "{folder}/recipe.yaml: task is missing; set it, or extend a file of templates/ that does."),
        ("extends: TEMPLATES/rec.yaml", "{folder}/recipe.yaml: stages.fine-tuning.batch_size is missing; set it, or"),
        (
            "extends: TEMPLATES/../rec_mixed_base.yaml\nstages: {fine-tunng: {epochs: 3}}",
            "stages.fine-tunng.freeze_backbone is missing; did you mean the stage 'fine-tuning'?",
        ),
    ],
)
def test_a_file_that_does_not_fit_says_so(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("TEMPLATES", str(FOLDER / "templates")), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message.replace("{folder}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


# Hardware -----------------------------------------------------------------------------------------------------------
ACCELERATE = sorted((TRAINING / "accelerate").glob("*.yaml"))


def launched(name: str, *arguments: str):
    """The arguments of `accelerate launch` after it has read a file of ours."""
    parser = launch_command_parser()
    config = str(TRAINING / "accelerate" / f"{name}.yaml")
    return _validate_launch_command(parser.parse_args(["--config_file", config, *arguments, "script.py"]))[0]


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))  # raises for unknown keys
    assert (
        config.distributed_type
        == {
            "one_process": DistributedType.NO,
            "multi_cpu": DistributedType.MULTI_GPU,  # so that several start
            "multi_gpu": DistributedType.MULTI_GPU,
            "multi_node": DistributedType.MULTI_GPU,
            "fsdp2": DistributedType.FSDP,
            "deepspeed_zero2": DistributedType.DEEPSPEED,
        }[path.stem]
    )
    assert config.mixed_precision == "no"
    assert f"accelerate launch --config_file training/accelerate/{path.name}" in header(path)
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    sections = {**config.fsdp_config, **config.deepspeed_config}
    assert set(sections) <= known, "accelerate drops unknown keys of sections without a word"


def test_accelerate_launches_what_the_configurations_mean():
    assert len(ACCELERATE) == 6
    assert launched("multi_cpu").num_processes == 2 and launched("multi_cpu").multi_gpu
    assert launched("multi_gpu", "--num_processes", "4").num_processes == 4
    node = launched("multi_node", "--machine_rank", "3", "--main_process_ip", "10.0.0.1")
    assert (node.num_machines, node.num_processes, node.machine_rank, node.multi_gpu) == (4, 32, 3, True)
    assert node.num_processes == node.num_machines * FACTS["every_row"]["gpus_per_node"]
    sharded = launched("fsdp2")
    assert sharded.use_fsdp and int(sharded.fsdp_version) == 2
    assert sharded.fsdp_transformer_layer_cls_to_wrap in Beit3Model._no_split_modules
    zero = launched("deepspeed_zero2")
    assert zero.use_deepspeed and zero.zero_stage == 2
    assert zero.gradient_clipping is None and zero.gradient_accumulation_steps is None  # left to the recipe


class TrainersDeepSpeedConfig(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """What Transformers makes of it, without the package that its constructor looks for."""

    def __init__(self, config):
        HfDeepSpeedConfig.__init__(self, config)
        self._dtype, self.mismatches = None, []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_deepspeed_gets_batch_clipping_and_precision_from_the_recipe(precision, monkeypatch, tmp_path):
    arguments = launched("deepspeed_zero2", "--num_processes", "1", "--main_process_port", "0")
    arguments.deepspeed_fields_from_accelerate_config = ""
    for name, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        if name.startswith("ACCELERATE_") and name != "ACCELERATE_USE_DEEPSPEED":
            monkeypatch.setenv(name, value)
    changes = {"smoke": True, "run.precision": precision, "optimizer.max_grad_norm": 0.3}
    recipe = load("rec_mixed_base", **changes, **{"stages.all.batch_size_per_device": 2}, output_dir=str(tmp_path))
    given = training_arguments(recipe, recipe.stages[0])
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision(given.mixed_precision)
    config = TrainersDeepSpeedConfig(plugin.deepspeed_config)
    config.trainer_config_process(given)
    config.trainer_config_finalize(given, None, 2)  # raises where both say something, and not the same
    assert config.get_value("train_micro_batch_size_per_gpu") == 2
    assert config.get_value("gradient_accumulation_steps") == 4
    assert config.get_value("train_batch_size") == recipe.stages[0].batch_size == 8
    assert config.get_value("gradient_clipping") == 0.3 and config.get_value("zero_optimization.stage") == 2
    assert config.dtype() == getattr(torch, precision) and "optimizer" not in config.config
