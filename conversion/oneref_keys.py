# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Which original parameter becomes which of ours: tables, and pure functions from names and shapes to a plan.

Nothing here opens a file or builds a model. Names are the original's (torchscale's BEiT-3 and OneRef's heads) on the
left and `oneref_hf`'s on the right; the first `{}` stands for the layer or the expert, the second for the expert.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


Shapes = Mapping[str, tuple[int, ...]]

VISION_POSITIONS = "beit3.encoder.embed_positions.A.weight"  # the one table that another image size makes longer
EXPERTS = {"A": "vision", "B": "text"}  # torchscale's names of the two experts, and ours

BACKBONE = {
    "beit3.text_embed.weight": "text_embeddings.token_embedding.weight",
    "beit3.vision_embed.cls_token": "vision_embeddings.cls_token",
    "beit3.vision_embed.mask_token": "vision_embeddings.mask_token",
    "beit3.vision_embed.proj.weight": "vision_embeddings.patch_embedding.weight",
    "beit3.vision_embed.proj.bias": "vision_embeddings.patch_embedding.bias",
    VISION_POSITIONS: "vision_embeddings.position_embedding.weight",
    "beit3.encoder.embed_positions.B.weight": "text_embeddings.position_embedding.weight",
}
FINAL_NORM = {"beit3.encoder.layer_norm.{}": "{}_norm"}
LAYER = {
    "beit3.encoder.layers.{}.self_attn_layer_norm.{}": "layers.{}.{}.attention_norm",
    "beit3.encoder.layers.{}.self_attn.inner_attn_ln.{}": "layers.{}.{}.attention_sub_norm",
    "beit3.encoder.layers.{}.self_attn.out_proj.{}": "layers.{}.{}.out_proj",
    "beit3.encoder.layers.{}.final_layer_norm.{}": "layers.{}.{}.mlp_norm",
    "beit3.encoder.layers.{}.ffn.{}.fc1": "layers.{}.{}.fc1",
    "beit3.encoder.layers.{}.ffn.{}.ffn_layernorm": "layers.{}.{}.mlp_sub_norm",
    "beit3.encoder.layers.{}.ffn.{}.fc2": "layers.{}.{}.fc2",
}
# Three matrices stacked by rows, in this order, are one of ours.
QKV = (
    "beit3.encoder.layers.{}.self_attn.q_proj.{}",
    "beit3.encoder.layers.{}.self_attn.k_proj.{}",
    "beit3.encoder.layers.{}.self_attn.v_proj.{}",
)
FUSED_QKV = "layers.{}.{}.qkv_proj"

CROSS_MODAL = {
    "vision_head.weight": "vision_projection.weight",
    "language_head.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}


def _affine(renames: dict[str, str]) -> dict[str, str]:
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in renames.items() for kind in ("weight", "bias")}


def _mlp(old: str, new: str) -> dict[str, str]:
    return _affine({f"{old}.layers.{index}": f"{new}.layers.{index}" for index in range(3)})


BOX_HEAD = {**_affine({"visu_proj": "box_head.projection"}), **_mlp("bbox_embed", "box_head.mlp")}
MASK_HEAD = {
    **{f"seg_conv{number}.weight": f"mask_head.convs.{number - 1}.weight" for number in (1, 2, 3)},
    **{
        f"bn{number}.{name}": f"mask_head.norms.{number - 1}.{name}"
        for number in (1, 2, 3)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
}
TOKEN_HEADS = _affine({"mim_head": "visual_token_head", "mlm_head": "mlm_head"})
RELATION_HEADS = {
    **_mlp("mim_vts_head", "visual_relation_head"),
    **_mlp("mlm_sts_head", "semantic_relation_head"),
}


@dataclass(frozen=True)
class Part:
    """A group of parameters that comes and goes together."""

    name: str
    renames: dict[str, str]

    @property
    def modules(self) -> tuple[str, ...]:
        """The original's top-level modules that the part consists of."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.renames))


PARTS = {
    "cross_modal": Part("cross-modal projections", CROSS_MODAL),
    "box": Part("box head", BOX_HEAD),
    "mask": Part("mask head", MASK_HEAD),
    "tokens": Part("MRefM token heads", TOKEN_HEADS),
    "relations": Part("MRefM relation heads", RELATION_HEADS),
}


@dataclass(frozen=True)
class Task:
    """What a converted model is made of besides the backbone, and where its parameters sit."""

    model_class: str
    backbone_prefix: str
    parts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # parts that stay fresh when the checkpoint has nothing of them


TASKS = {
    "backbone": Task("Beit3Model", ""),
    "grounding": Task("OneRefForGrounding", "oneref.beit3.", ("cross_modal", "box")),
    "segmentation": Task("OneRefForSegmentation", "oneref.beit3.", ("cross_modal", "box", "mask")),
    "pretraining": Task(
        "OneRefForPreTraining", "oneref.beit3.", ("cross_modal", "box", "tokens", "relations"), ("relations",)
    ),
}

# Source parameters that no task has a use for.
NEVER_USED = {"text_proj": "the original's forward pass never uses it"}


class KeyMismatch(ValueError):
    """Names or shapes of a checkpoint do not fit the model; the message lists every one."""


@dataclass(frozen=True)
class Assignment:
    """One of our parameters and the original ones it is made of, stacked by rows where there are several."""

    target: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What becomes of every parameter."""

    task: str
    assignments: tuple[Assignment, ...]
    dropped: dict[str, str]  # source name -> reason
    fresh: dict[str, str]  # target name -> reason


def has_part(names: Iterable[str], part: str) -> bool:
    """Whether anything of the part is there."""
    modules = PARTS[part].modules
    return any(name.split(".")[0] in modules for name in names)


def infer_task(names: Iterable[str]) -> str:
    """The task a checkpoint serves, from the heads it has.

    BEiT-3's own files have heads named as MRefM's, so what makes a OneRef checkpoint is the box head.
    """
    names = list(names)
    if not any(name.startswith("beit3.") for name in names):
        if any(name.startswith("quantize.") for name in names):
            raise KeyMismatch("this is a VQ-KD visual tokenizer; use convert_vqkd.py")
        listing = ", ".join(name[:60] for name in names[:3])
        raise KeyMismatch(f"it has no BEiT-3 weights (beit3.*); its names begin with {listing}")
    if not has_part(names, "box"):
        return "backbone"
    if has_part(names, "tokens"):
        return "pretraining"
    return "segmentation" if has_part(names, "mask") else "grounding"


def check_task(task: str, names: Iterable[str]) -> None:
    """Raises `KeyMismatch` where the checkpoint lacks a head that the task cannot do without."""
    names = list(names)
    found = infer_task(names)
    lacking = [part for part in TASKS[task].parts if part not in TASKS[task].optional and not has_part(names, part)]
    if lacking:
        modules = ", ".join(module for part in lacking for module in PARTS[part].modules)
        raise KeyMismatch(
            f"--task {task} needs {modules}, which this {found} checkpoint does not have; use --task {found}"
        )


def infer_config(shapes: Shapes, task: str) -> dict[str, int]:
    """Sizes of the model, as arguments of its configuration, read off the shapes.

    The number of heads follows from BEiT-3's head dimension, 64. Raises `KeyMismatch` where the checkpoint does not
    serve the task or a shape makes no sense.
    """
    check_task(task, shapes)
    needed = {
        "text_embed": "beit3.text_embed.weight",
        "patches": "beit3.vision_embed.proj.weight",
        "vision_positions": VISION_POSITIONS,
        "text_positions": "beit3.encoder.embed_positions.B.weight",
        "fc1": "beit3.encoder.layers.0.ffn.A.fc1.weight",
    }
    if task == "pretraining":
        needed["visual_tokens"] = "mim_head.weight"
    missing = [name for name in needed.values() if name not in shapes]
    if missing:
        raise KeyMismatch(f"it lacks {', '.join(missing)}")
    flat = [name for key, name in needed.items() if len(shapes[name]) != (4 if key == "patches" else 2)]
    if flat:
        raise KeyMismatch(f"{flat[0]} has the impossible shape {shapes[flat[0]]}")

    vocab_size, hidden_size = shapes[needed["text_embed"]]
    _, num_channels, patch_size, patch_width = shapes[needed["patches"]]
    num_patches = shapes[needed["vision_positions"]][0] - 3  # two rows that are never read, and the CLS token
    side = math.isqrt(max(num_patches, 0))
    if hidden_size == 0 or hidden_size % 64:
        raise KeyMismatch(f"its width {hidden_size} is not a multiple of BEiT-3's head dimension 64")
    if side == 0 or side**2 != num_patches or patch_size != patch_width or patch_size == 0:
        raise KeyMismatch(
            f"{num_patches} positions for patches of {patch_size} x {patch_width} are not a square image"
        )
    config = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_layers(shapes),
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": shapes[needed["fc1"]][0],
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "max_position_embeddings": shapes[needed["text_positions"]][0],
    }
    if task == "pretraining":
        config["visual_vocab_size"] = shapes[needed["visual_tokens"]][0]
    return config


def _count_layers(names: Iterable[str]) -> int:
    matches = (re.match(r"beit3\.encoder\.layers\.(\d{1,4})\.", name) for name in names)
    present = sorted({int(match[1]) for match in matches if match})
    absent = sorted(set(range(len(present))) - set(present))
    if absent:
        raise KeyMismatch(f"it lacks layer {absent[0]} although it has layer {present[-1]}")
    return len(present)


def assignments_of(task: str, num_layers: int) -> dict[str, tuple[str, ...]]:
    """Every parameter of the task's model and the original ones it is made of, backbone first."""
    prefix = TASKS[task].backbone_prefix
    targets = {prefix + new: (old,) for old, new in BACKBONE.items()}
    for old, new in _affine(FINAL_NORM).items():
        targets |= {prefix + new.format(ours): (old.format(theirs),) for theirs, ours in EXPERTS.items()}
    for layer in range(num_layers):
        for theirs, ours in EXPERTS.items():
            for kind in ("weight", "bias"):
                fused = tuple(f"{old.format(layer, theirs)}.{kind}" for old in QKV)
                targets[f"{prefix}{FUSED_QKV.format(layer, ours)}.{kind}"] = fused
            for old, new in _affine(LAYER).items():
                targets[prefix + new.format(layer, ours)] = (old.format(layer, theirs),)
    for part in TASKS[task].parts:
        inner = prefix.removesuffix("beit3.") if part == "cross_modal" else ""
        targets |= {inner + new: (old,) for old, new in PARTS[part].renames.items()}
    return targets


def map_state_dict(shapes: Shapes, target_shapes: Shapes, task: str, allow_unused: bool = False) -> Plan:
    """Accounts for every parameter on both sides.

    Args:
        shapes: the checkpoint's names and shapes.
        target_shapes: names and shapes of the model to fill. The vision position table may have another number of
            rows than the checkpoint's; it is to be interpolated then.
        task: a key of `TASKS`.
        allow_unused: drops source names that no table knows instead of refusing them.

    Raises:
        KeyMismatch: the task does not fit, or something is left over on either side, or a shape differs; all listed.
    """
    check_task(task, shapes)
    wanted = assignments_of(task, _count_layers(shapes))
    fresh_parts = [part for part in TASKS[task].optional if not has_part(shapes, part)]
    fresh = {
        target: f"the checkpoint has no {PARTS[part].name}; they are initialised when the model is loaded"
        for part in fresh_parts
        for target in PARTS[part].renames.values()
    }
    for target in fresh:
        del wanted[target]

    used = {source for sources in wanted.values() for source in sources}
    is_oneref = has_part(shapes, "box")
    reasons = {name: _reason_to_drop(name, task, is_oneref) for name in shapes if name not in used}
    unknown = [] if allow_unused else [name for name, reason in reasons.items() if reason is None]
    dropped = {name: reason or "unknown, dropped on request (--allow-unused)" for name, reason in reasons.items()}

    problems = []
    missing = sorted(used - set(shapes))
    unfilled = sorted(set(target_shapes) - set(wanted) - set(fresh))
    homeless = sorted((set(wanted) | set(fresh)) - set(target_shapes))
    misshapen = _misshapen(wanted, shapes, target_shapes)
    for label, names in (
        ("the checkpoint lacks", missing),
        ("it has unknown parameters (drop them with --allow-unused):", unknown),
        ("the model has parameters that nothing fills:", unfilled),
        ("the model lacks", homeless),
        ("shapes differ:", misshapen),
    ):
        if names:
            problems.append(f"{label} {', '.join(names)}")
    if problems:
        raise KeyMismatch("; ".join(problems))
    assignments = tuple(Assignment(target, sources) for target, sources in wanted.items())
    return Plan(task, assignments, dropped, fresh)


def _reason_to_drop(name: str, task: str, is_oneref: bool) -> str | None:
    module = name.split(".")[0]
    if module in NEVER_USED:
        return NEVER_USED[module]
    for part_name, part in PARTS.items():
        if module in part.modules and part_name not in TASKS[task].parts:
            if part_name == "tokens" and not is_oneref:
                return "BEiT-3's own pre-training head"
            return f"{part.name}, which a {task} model does not have"
    return None


def _misshapen(wanted: Mapping[str, tuple[str, ...]], shapes: Shapes, target_shapes: Shapes) -> list[str]:
    found = []
    for target, sources in wanted.items():
        if target not in target_shapes or any(source not in shapes for source in sources):
            continue
        expected = tuple(target_shapes[target])
        parts = [tuple(shapes[source]) for source in sources]
        if sources == (VISION_POSITIONS,):
            fits = parts[0][1:] == expected[1:]
        elif len(parts) == 1:
            fits = parts[0] == expected
        else:
            fits = len(expected) > 0 and parts == [(expected[0] // len(parts), *expected[1:])] * len(parts)
        if not fits:
            found.append(f"{' + '.join(sources)} {' + '.join(map(str, parts))} for {target} {expected}")
    return found


def resize_positions(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Interpolates a vision position table `(3 + old patches, D)` to `rows` rows, as the original's loader does.

    The first three rows (two that are never read, and the CLS token's) stay; the patch rows are interpolated.
    Returned in float32, as computed.
    """
    from oneref_hf.modeling_beit3 import interpolate_patch_positions  # seconds, which --help need not wait for

    kept, patches = table.float().split([3, table.shape[0] - 3])
    side = math.isqrt(rows - 3)
    return torch.cat([kept, interpolate_patch_positions(patches, (side, side))])
