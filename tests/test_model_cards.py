# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The committed model cards are what the template and the manifest give, their metadata is valid, their code runs."""

import re
import shutil
from pathlib import Path

import convert_oneref
import convert_vqkd
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from manifest import load_manifest
from scripts import load_script

from oneref_hf.recipes import load_recipe, recipes_in


CARDS = Path(__file__).parents[1] / "model_cards"
ROWS = load_manifest().models
LEFTOVERS = re.compile(r"\{\{|\}\}|\{%|\bNone\b|\bTODO\b|\bTBD\b|\bDIR\b|\bundefined\b|More Information|<[A-Z_]+>")


render = load_script(CARDS / "render.py")


def split_command(text: str) -> tuple[Path, list[str]]:
    path, *arguments = text.split()
    return CARDS.parent / path, arguments


def usage_of(card: str) -> str:
    return re.search(r"## Use\n\n```python\n(.*?)\n```", card, flags=re.DOTALL)[1]


def test_the_committed_cards_are_the_rendered_ones(tmp_path, capsys):
    assert render.main(["--output", str(tmp_path)]) == 0
    rendered = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in CARDS.glob("*.md") if path.name != "template.md"}
    assert sorted(rendered) == sorted(f"{row.name}.md" for row in ROWS)
    assert committed == rendered, "run python model_cards/render.py"


def test_nothing_to_render_is_one_sentence(tmp_path, capsys):
    assert render.main(["--output", str(tmp_path / "out"), "--only", "rec-huge-*"]) == 1
    assert capsys.readouterr().err == "render: no released model has a name like 'rec-huge-*'.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_metadata_is_what_the_hub_reads(row):
    data = ModelCard(render.render_card(row)).data  # raises where metadata or model-index are malformed
    assert data.license == ("mit" if row.task in ("beit3", "vqkd") else "apache-2.0")
    assert data.library_name == "transformers" and data.base_model == "linhuixiao/OneRef" and "oneref" in data.tags
    assert data.pipeline_tag == {
        "grounding": "zero-shot-object-detection",
        "segmentation": "image-segmentation",
    }.get(row.kind, data.pipeline_tag)
    for dataset in data.datasets or []:
        validate_repo_id(dataset)
    metric_types = {"accuracy": "acc", "mean_iou": "miou", "overall_iou": "oiou"}
    evaluated = [
        (metric_types[e.metric_type], e.dataset_name, e.dataset_split, e.metric_value) for e in data.eval_results or []
    ]
    names = {"unc": "RefCOCO", "unc+": "RefCOCO+", "gref_umd": "RefCOCOg", "referit": "ReferItGame"}
    names["flickr"] = "Flickr30k Entities"
    assert sorted(evaluated) == sorted((r.metric, names[r.dataset], r.split, r.value) for r in row.results)
    assert all(entry.source_url and entry.verified is None for entry in data.eval_results or [])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_card_has_the_required_facts_and_no_leftover(row):
    card = render.render_card(row)
    text = ModelCard(card).text
    assert not LEFTOVERS.search(card), LEFTOVERS.search(card)
    assert "\n\n\n" not in text and not re.search(r"[ \t]$", text, flags=re.MULTILINE)
    wanted = ["## Use", "## Coordinates", "## Source", "## Limits", "## Licence and citation", f"`{row.file}`"]
    wanted += [title for title, value in {"## Results": row.results, "## Training": row.recipe}.items() if value]
    headings = re.findall(r"^## .*$", text, flags=re.MULTILINE)
    assert set(wanted) >= set(headings) and all(fact in text for fact in wanted)
    assert "OneRef: Unified One-tower Expression Grounding and Segmentation with Mask Referring Modeling" in text
    assert "Linhui Xiao and Xiaoshan Yang and Fang Peng and Yaowei Wang and Changsheng Xu" in text
    for result in row.results:
        assert re.search(rf"^\| .* \| {result.split} \|.* {result.value:.2f} \|", text, flags=re.MULTILINE)
    if row.recipe:
        path, variant = recipes_in(render.RECIPES)[row.recipe]
        recipe = load_recipe(path, {"variant": variant} if variant else {})
        assert f"`{row.recipe}`" in text and f"from `{recipe.model.init}` on" in text and "AdamW" in text
        for stage in recipe.stages:
            numbers = f"{stage.epochs} | {stage.learning_rate:g} | {stage.batch_size} |"
            assert re.search(rf"^\| {stage.name} \| .* \| {re.escape(numbers)}$", text, flags=re.MULTILINE)
        command = re.search(
            r"^accelerate launch (training/\w+\.py) (training/recipes/.*) --data\.images", text, re.MULTILINE
        )
        assert load_recipe(*split_command(command[2])) == recipe
        assert command[1].endswith("pretrain_mrefm.py" if recipe.task == "mrefm" else "finetune.py")
    if row.kind in ("grounding", "segmentation"):
        assert "not a probability" in text and "0.5 means no preference" in text and "exactly one" in text
        assert "in pixels of the original picture" in text
    script = "convert_vqkd" if row.kind == "tokenizer" else "convert_oneref"
    assert f"conversion/{script}.py --name {row.name} --output converted/{row.name}\n" in text
    hours = {"base": 15, "large": 50}[row.size]
    assert (f"names 32 NVIDIA A100 and about {hours} hours." in text) == (row.kind == "pretraining")
    usage = usage_of(card)
    compile(usage, row.name, "exec")
    assert len([line for line in usage.splitlines() if line.strip()]) <= 6


def test_a_card_of_one_released_model_says_what_it_should():
    text = ModelCard(
        render.render_card(load_manifest().model("res-base-refcoco"), model="me/mine", sha256="ab12")
    ).text
    assert 'pipeline("referring-expression", model="me/mine")' in text
    assert "| RefCOCO | testA | 79.05 | 80.96 |" in text
    assert "| warm-up | heads, encoder frozen | `mask_focal`, `mask_dice` | 10 | 0.00025 | 512 |" in text
    assert "| fine-tuning | everything | `mask_focal`, `mask_dice` | 20 | 3e-05 | 192 |" in text
    assert "`unc/best_checkpoint.pth` in `res_single_dataset_finetuning_base.zip` (about 6 GB)" in text
    assert "`ab12`" in text


def test_segmentation_cards_say_where_box_and_score_come_from():
    """What `OneRefForSegmentation` does with the configuration that a conversion writes."""
    for row in ROWS:
        text = render.render_card(row)
        of_the_mask = (
            "(`trained_on_masks_only` in `config.json`), and `box` and `score` are taken from the mask" in text
        )
        assert of_the_mask == (row.kind == "segmentation")
        assert "Do not rely on `box`" not in text
        assert ("contrast of the mask's logits" in text) == (row.kind == "segmentation")
        assert ("contrast of the similarity map" in text) == (row.kind == "grounding")


@pytest.mark.parametrize(
    "name, checkpoint",
    [
        ("rec-base-refcoco", "rec"),
        ("res-base-refcoco", "res"),
        ("mrefm-rec-base", "mrefm"),
        ("beit3-base", "beit3"),
        ("vqkd", "vqkd"),
    ],
)
def test_the_usage_lines_run(name, checkpoint, tmp_path, monkeypatch, original_checkpoint, fixtures_dir, capsys):
    """On a small checkpoint in the original's format, converted by the command that the card of its kind names."""
    source, output = str(original_checkpoint(checkpoint)), str(tmp_path / "model")
    if checkpoint == "vqkd":
        convert_vqkd.main([source, "--output", output])
    else:
        convert_oneref.main([source, "--tokenizer", str(fixtures_dir / "tiny.spm"), "--output", output])
    shutil.copyfile(fixtures_dir / "astronaut_150x201.png", tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    usage = usage_of(render.render_card(load_manifest().model(name), model=output))
    exec(compile(usage, name, "exec"), {})
    printed = capsys.readouterr().out
    expected = {"rec": "'box': {'xmin'", "res": "'mask': <PIL.Image", "vqkd": "tensor([[", "beit3": "tensor([[["}
    assert expected.get(checkpoint, "tensor([[[") in printed
