# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The tables account for every parameter of the original and of ours, and say so when something is left over."""

import json
import re

import pytest
import torch
from oneref_keys import (
    NEVER_USED,
    PARTS,
    TASKS,
    KeyMismatch,
    assignments_of,
    check_task,
    infer_config,
    infer_task,
    map_state_dict,
    resize_positions,
)

import oneref_hf


@pytest.fixture(scope="session")
def inventory(fixtures_dir) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original model with every head."""
    shapes = json.loads((fixtures_dir / "inventory.json").read_text())["oneref"]
    return {name: tuple(shape) for name, shape in shapes.items()}


def without(shapes, *modules) -> dict:
    return {name: shape for name, shape in shapes.items() if name.split(".")[0] not in modules}


def of_kind(shapes, kind: str) -> dict:
    """The parameters of one kind of checkpoint, by the original's own list of heads."""
    mrefm = ("mim_head", "mim_vts_head", "mlm_head", "mlm_sts_head")
    mask = ("seg_conv1", "seg_conv2", "seg_conv3", "bn1", "bn2", "bn3")
    if kind == "beit3":
        return {name: shape for name, shape in shapes.items() if name.startswith("beit3.")}
    return without(shapes, *{"mrefm": (), "res": mrefm, "rec": mrefm + mask}[kind])


def target_shapes(shapes, task: str, **changes) -> dict[str, tuple[int, ...]]:
    model_class = getattr(oneref_hf, TASKS[task].model_class)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**{**infer_config(shapes, task), **changes}))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_tables_cover_the_original_completely(inventory):
    """Every original name is in a part, in the backbone, or never used; and none twice."""
    sources = [source for names in assignments_of("backbone", 2).values() for source in names]
    sources += [source for part in PARTS.values() for source in part.renames]
    assert len(sources) == len(set(sources))
    assert set(inventory) - set(sources) == {"text_proj.weight", "text_proj.bias"}
    assert set(sources) <= set(inventory)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_tables_cover_our_models_completely(inventory, task):
    targets = assignments_of(task, 2)
    assert set(targets) == set(target_shapes(inventory, task))
    used = [source for sources in targets.values() for source in sources]
    assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("kind", "inferred", "possible"),
    [
        ("beit3", "backbone", ["backbone"]),
        ("rec", "grounding", ["backbone", "grounding"]),
        ("res", "segmentation", ["backbone", "grounding", "segmentation"]),
        ("mrefm", "pretraining", ["backbone", "grounding", "segmentation", "pretraining"]),
    ],
)
def test_which_tasks_a_checkpoint_serves(inventory, kind, inferred, possible):
    shapes = of_kind(inventory, kind)
    assert infer_task(shapes) == inferred
    for task in TASKS:
        if task not in possible:
            with pytest.raises(KeyMismatch, match=rf"--task {task} needs .*use --task {inferred}"):
                check_task(task, shapes)
            continue
        plan = map_state_dict(shapes, target_shapes(shapes, task), task)
        used = {source for assignment in plan.assignments for source in assignment.sources}
        assert used | set(plan.dropped) == set(shapes) and not used & set(plan.dropped)
        assert not plan.fresh
        assert all(plan.dropped.values())


def test_qkv_are_stacked_in_this_order(inventory):
    sources = assignments_of("grounding", 2)["oneref.beit3.layers.1.text.qkv_proj.weight"]
    assert sources == tuple(f"beit3.encoder.layers.1.self_attn.{name}_proj.B.weight" for name in "qkv")


def test_reasons_for_dropping(inventory):
    shapes = of_kind(inventory, "beit3")
    shapes |= {"mlm_head.weight": (216, 128), "mlm_head.dense.weight": (1, 1), "mim_head.bias": (64,)}
    plan = map_state_dict(shapes, target_shapes(shapes, "backbone"), "backbone")
    assert set(plan.dropped.values()) == {"BEiT-3's own pre-training head"} and len(plan.dropped) == 3

    plan = map_state_dict(inventory, target_shapes(inventory, "pretraining"), "pretraining")
    assert plan.dropped["text_proj.weight"] == NEVER_USED["text_proj"]
    assert plan.dropped["bn1.running_var"] == "mask head, which a pretraining model does not have"


def test_relation_heads_may_be_absent_from_pretraining_checkpoints(inventory):
    """The released commands train without them."""
    shapes = without(inventory, "mim_vts_head", "mlm_sts_head")
    plan = map_state_dict(shapes, target_shapes(shapes, "pretraining"), "pretraining")
    assert len(plan.fresh) == 12 and all("relation_head" in name for name in plan.fresh)
    assert not set(plan.fresh) & {assignment.target for assignment in plan.assignments}


def test_every_leftover_is_listed(inventory):
    shapes = dict(of_kind(inventory, "rec"))
    targets = target_shapes(shapes, "grounding")
    del shapes["visu_proj.bias"], shapes["beit3.encoder.layers.1.ffn.B.fc2.weight"]
    shapes |= {"novel.weight": (3,), "beit3.encoder.layers.1.extra": (1,), "vision_head.weight": (128, 64)}
    shapes["beit3.encoder.layers.0.self_attn.k_proj.A.bias"] = (64,)
    with pytest.raises(KeyMismatch) as caught:
        map_state_dict(shapes, targets, "grounding")
    message = str(caught.value)
    for part in (
        "the checkpoint lacks beit3.encoder.layers.1.ffn.B.fc2.weight, visu_proj.bias",
        "--allow-unused): novel.weight, beit3.encoder.layers.1.extra",
        "vision_head.weight (128, 64) for oneref.vision_projection.weight (128, 128)",
        "k_proj.A.bias",
    ):
        assert part in message

    for name in ("novel.weight", "beit3.encoder.layers.1.extra"):
        shapes = {**of_kind(inventory, "rec"), name: (3,)}
        with pytest.raises(KeyMismatch, match=re.escape(name)):
            map_state_dict(shapes, targets, "grounding")
        assert "on request" in map_state_dict(shapes, targets, "grounding", allow_unused=True).dropped[name]


def test_a_model_with_a_parameter_that_no_table_knows(inventory):
    targets = target_shapes(inventory, "grounding")
    with pytest.raises(KeyMismatch, match=r"nothing fills: box_head\.new"):
        map_state_dict(inventory, {**targets, "box_head.new": (1,)}, "grounding")
    del targets["box_head.projection.bias"]
    with pytest.raises(KeyMismatch, match=r"the model lacks box_head\.projection\.bias"):
        map_state_dict(inventory, targets, "grounding")


def test_sizes_are_read_off_the_shapes(inventory):
    assert infer_config(inventory, "pretraining") == {
        "vocab_size": 216,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "image_size": 64,
        "patch_size": 16,
        "num_channels": 3,
        "max_position_embeddings": 1024,
        "visual_vocab_size": 64,
    }
    assert "visual_vocab_size" not in infer_config(inventory, "grounding")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("beit3.encoder.embed_positions.A.weight", (18, 128), "not a square image"),
        ("beit3.encoder.embed_positions.A.weight", (2, 128), "not a square image"),
        ("beit3.vision_embed.proj.weight", (128, 3, 16, 8), "not a square image"),
        ("beit3.vision_embed.proj.weight", (128,), "impossible shape"),
        ("beit3.text_embed.weight", (216, 100), "multiple of BEiT-3's head dimension 64"),
        ("beit3.text_embed.weight", None, "it lacks beit3.text_embed.weight"),
        ("beit3.encoder.layers.3.ffn.A.fc1.weight", (1, 1), "lacks layer 2 although it has layer 3"),
    ],
)
def test_shapes_that_make_no_model(inventory, name, shape, message):
    shapes = {key: value for key, value in {**inventory, name: shape}.items() if value is not None}
    with pytest.raises(KeyMismatch, match=re.escape(message)):
        infer_config(shapes, "grounding")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encoder.cls_token", "quantize.embedding.weight"], "use convert_vqkd.py"),
        (["backbone.conv.weight"], "no BEiT-3 weights .* begin with backbone.conv.weight"),
    ],
)
def test_checkpoints_of_other_models(names, message):
    with pytest.raises(KeyMismatch, match=message):
        infer_task(names)


def test_positions_are_interpolated_as_in_the_original(inventory, golden, original_checkpoint):
    table = torch.load(original_checkpoint("beit3"), weights_only=True)["model"][
        "beit3.encoder.embed_positions.A.weight"
    ]
    resized = resize_positions(table, 3 + 36)
    assert torch.equal(resized, golden["interpolated.vision_position_embedding"])
    assert torch.equal(resized[:3], table[:3])
    assert resize_positions(table.half(), 3 + 36).dtype == torch.float32

    target = target_shapes(inventory, "grounding", image_size=96)
    assert map_state_dict(inventory, target, "grounding").assignments  # the one shape that may differ
