# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The manifest expands to every released model, and its numbers equal a table kept here on their own."""

from collections import Counter

import pytest
import yaml
from manifest import MANIFEST, ManifestError, load_manifest


# Scores of the paper: task, setting, size, metric | RefCOCO val testA testB | RefCOCO+ the same | RefCOCOg val test |
# ReferItGame test | Flickr30k test.
SCORES = """
rec single_dataset base  acc  | 88.75 90.95 85.34 | 80.43 86.46 74.26 | 83.68 83.52 | 77.17 | 83.61
rec single_dataset large acc  | 92.87 94.01 90.19 | 87.98 91.57 83.73 | 88.11 89.29 | 81.11 | 84.75
rec mixup          base  acc  | 91.89 94.31 88.58 | 86.38 90.38 79.47 | 86.82 87.32
rec mixup          large acc  | 93.21 95.43 90.11 | 88.35 92.11 82.70 | 87.81 88.83
res single_dataset base  miou | 77.57 79.05 75.11 | 71.25 75.41 65.45 | 69.37 69.70
res single_dataset large miou | 80.09 82.19 77.51 | 75.17 79.38 70.17 | 73.18 73.76
res mixup          base  miou | 79.83 81.86 76.99 | 74.68 77.90 69.58 | 74.06 74.92
res mixup          large miou | 81.26 83.06 79.45 | 76.60 80.16 72.95 | 75.68 76.82
res single_dataset base  oiou | 77.55 80.96 73.53 | 70.82 74.53 64.06 | 70.68 70.61
res single_dataset large oiou | 80.48 82.78 78.27 | 74.25 78.41 69.85 | 74.91 77.36
res mixup          base  oiou | 81.06 83.05 77.80 | 72.24 77.32 67.08 | 75.14 77.21
res mixup          large oiou | 81.95 83.62 79.57 | 74.55 79.54 70.65 | 76.53 79.18
"""
COLUMNS = [
    ("unc", ("val", "testA", "testB")),
    ("unc+", ("val", "testA", "testB")),
    ("gref_umd", ("val", "test")),
    ("referit", ("test",)),
    ("flickr", ("test",)),
]


def expected_scores() -> Counter:
    scores = Counter()
    for line in SCORES.strip().splitlines():
        head, *groups = line.split("|")
        for (dataset, splits), values in zip(COLUMNS, groups, strict=False):
            for split, value in zip(splits, values.split(), strict=True):
                scores[(*head.split(), dataset, split, float(value))] += 1
    return scores


def test_every_published_score_belongs_to_exactly_one_model():
    found = Counter(
        (row.task, row.setting, row.size, result.metric, result.dataset, result.split, result.value)
        for row in load_manifest()
        for result in row.results
    )
    assert found == expected_scores()
    assert sum(found.values()) == 2 * 10 + 10 * 8


def test_twenty_four_task_models_in_sixteen_files_and_four_backbones():
    rows = load_manifest().models
    released = [row for row in rows if row.setting in ("single_dataset", "mixup")]
    assert len(released) == 24 and len({row.file for row in released}) == 16
    assert Counter((row.task, row.size) for row in released) == {
        ("rec", "base"): 8,
        ("rec", "large"): 8,
        ("res", "base"): 4,
        ("res", "large"): 4,
    }
    assert Counter(row.kind for row in rows) == {
        "grounding": 17,  # with the one of the survey
        "segmentation": 8,
        "pretraining": 4,
        "backbone": 2,
        "tokenizer": 1,
    }
    assert all(row.repos == ("linhuixiao/OneRef", "xiaolinhui/OneRef") for row in rows)


def test_names_members_and_encoded_plus_signs():
    manifest = load_manifest()
    row = manifest.model("rec-base-refcoco-plus")
    assert (row.file, row.member) == ("rec_single_dataset_finetuning_base.zip", "unc+/best_checkpoint.pth")
    assert row.uncertain == ("member",) and row.approx_gb == 9.0
    row = manifest.model("rec-large-refcoco-plus")
    assert row.member is None
    assert row.hub_files == (
        "rec_single_dataset_finetuning_large_unc+.pth",
        "rec_single_dataset_finetuning_large_unc%2B.pth",
    )
    assert manifest.model("beit3-base").hub_files == ("beit3_checkpoints/beit3_base_indomain_patch16_224.pth",)
    assert manifest.model("res-large-mixed").file == "res_mixup_grounding_pretraining_large_unc_+_g.pth"
    assert manifest.tokenizer == "beit3_checkpoints/beit3.spm"
    with pytest.raises(
        ManifestError, match=r"no released model is called 'rec-base-refcocoo'; did you mean 'rec-base"
    ):
        manifest.model("rec-base-refcocoo")


def test_the_recipe_that_trains_a_model_is_named_after_the_script():
    """tests/test_recipes.py checks that these are the recipes that exist."""
    expected = {
        "rec-base-refcoco": "rec_single_base_refcoco",
        "rec-base-refcoco-plus": "rec_single_base_refcoco_plus",
        "rec-base-mixed": "rec_mixed_base",
        "rec-large-mixed-referit": "rec_mixed_large_referit",
        "res-base-refcocog": "res_single_base_refcocog",
        "res-large-mixed": "res_mixed_large",
        "mrefm-res-large": "mrefm_res_large",
        "rec-base-survey": None,
        "beit3-base": None,
        "vqkd": None,
    }
    manifest = load_manifest()
    assert {name: manifest.model(name).recipe for name in expected} == expected
    assert sum(row.recipe is not None for row in manifest) == 28


def test_the_cost_of_mrefm():
    costs = {row.name: row.cost for row in load_manifest() if row.cost}
    assert {name: (cost.devices, cost.hours) for name, cost in costs.items()} == {
        f"mrefm-{task}-{size}": ("32 NVIDIA A100", hours)
        for task in ("rec", "res")
        for size, hours in (("base", 15), ("large", 50))
    }


def test_datasets_and_their_counts():
    manifest = load_manifest()
    counts = {key: entry.counts for key, entry in manifest.datasets.items()}
    assert counts == {
        "unc": {"train": 120624, "val": 10834, "testA": 5657, "testB": 5095},
        "unc+": {"train": 120191, "val": 10758, "testA": 5726, "testB": 4889},
        "gref_umd": {"train": 80512, "val": 4896, "test": 9602},
        "gref": {"train": 85474, "val": 9536},
        "referit": {"train": 54127, "val": 5842, "test": 60103, "trainval": 59969},
        "flickr": {"train": 427193, "val": 14433, "test": 14481},
        "mixup_with_refc": {"train": 321327},
        "mixup_with_refc_referit": {"train": 375454},
    }
    for entry in manifest.datasets.values():
        if entry.parts:
            assert sum(counts[part]["train"] for part in entry.parts) == entry.counts["train"]
    assert manifest.dataset("refcoco+") is manifest.dataset("unc+") is manifest.dataset("refcoco-plus")


def drop_tokenizer(raw):
    del raw["tokenizer"]


def add_unknown_key(raw):
    raw["files"][1]["datset"] = "unc"


def archive_without_member(raw):
    raw["files"][1]["file"] += ".zip"


def same_model_twice(raw):
    raw["files"].append(raw["files"][1])


def score_of_an_unknown_split(raw):
    raw["results"][0]["gref_umd"]["testA"] = 50.0


def score_above_hundred(raw):
    raw["results"][0]["unc"]["val"] = 887.5


def score_as_text(raw):
    raw["results"][0]["unc"]["val"] = "88.75"


def cost_of_one_size(raw):
    del raw["mrefm_cost"]["hours"]["large"]


def cost_as_text(raw):
    raw["mrefm_cost"]["hours"]["base"] = "15 h"


@pytest.mark.parametrize(
    "change, message",
    [
        (cost_of_one_size, "mrefm_cost, hours: 'large' is missing"),
        (cost_as_text, "mrefm_cost, hours, base: expected a int, found '15 h'"),
        (drop_tokenizer, "the manifest: 'tokenizer' is missing"),
        (add_unknown_key, "files, row 2: unknown key 'datset'; did you mean 'dataset'"),
        (archive_without_member, "files, row 2: an archive, and only an archive, needs a member"),
        (same_model_twice, "two models have the name 'rec-large-refcoco'"),
        (score_of_an_unknown_split, "results, row 1: gref_umd has no split 'testA'"),
        (score_above_hundred, "887.5 for unc val is not a percentage"),
        (score_as_text, "results, row 1, unc val: expected a float, found '88.75'"),
    ],
)
def test_a_manifest_that_does_not_fit_says_where(tmp_path, change, message):
    raw = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    change(raw)
    path = tmp_path / "checkpoints.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert message in str(caught.value)


def test_a_manifest_that_is_no_yaml_is_one_sentence(tmp_path):
    path = tmp_path / "checkpoints.yaml"
    path.write_text("files: [", encoding="utf-8")
    with pytest.raises(ManifestError, match="cannot be read as YAML"):
        load_manifest(path)
    with pytest.raises(ManifestError, match="expected a dict, found"):
        path.write_text("- a", encoding="utf-8")
        load_manifest(path)
