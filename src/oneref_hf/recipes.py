# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Training recipes: YAML files that inherit, override and are checked before anything is loaded.

    recipe = load_recipe("training/recipes/rec_single_base.yaml", ["--variant", "refcoco", "--data.images", "coco"])
    recipe.stages[0].learning_rate

A file holds the sections of `Recipe`, and besides
- `extends`: one file or several, relative to this one, whose values it starts from (later ones win);
- `variants`: named changes, one of which `--variant NAME` adds; the recipe is then called FILE_NAME;
- `smoke`: the changes that `--smoke` adds: a tiny fresh model and two steps per stage on synthetic pictures.

Sections merge key by key; what is not a section (a list, `columns`, `splits`) is replaced as a whole. A change of
`data.dataset` without one of `evaluation.splits` has the new data set scored where the old one was. `stages` is a
mapping in the order of training. In it, `all` stands for every stage (what is named beside it wins), and a stage set
to null is left out. `losses` maps the names of `OneRefConfig.loss_weights` to true (the weight of the configuration),
false or a weight.

Later wins: extended files, the file, its variant, smoke, the command line. Keys of the command line are dotted:
`--stages.fine-tuning.learning_rate 1e-4`, `--stages.all.losses.visual_relation true`, `--stages.warm-up null`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from .configuration_oneref import DEFAULT_LOSS_WEIGHTS, OneRefConfig


# Fields of OneRefConfig that differ between the released sizes, and a model for smoke runs.
MODEL_SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    "small": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
FRESH = "fresh"
SYNTHETIC, SYNTHETIC_SPLITS = "synthetic", ("train", "val")


class RecipeError(ValueError):
    """A recipe or a change to it does not fit; one sentence says where and what to do."""


def _within(low: float, high: float = float("inf"), **options):
    """A field whose number lies between low and high, both included."""
    return dataclasses.field(metadata={"range": (low, high)}, **options)


@dataclass(frozen=True)
class Model:
    """What is trained.

    size: key of `MODEL_SIZES`, which the weights of `init` must have; None takes any, but what is `fresh` needs one.
    init: name of a released model (looked up in `Recipe.converted`), a directory, a Hub id, or `fresh`.
    image_size: canvas side in pixels, whole patches of 16; position tables of another size are interpolated.
    visual_tokenizer: as `init`, for the VQ-KD model of MRefM; None where no loss needs it.
    """

    size: Literal["tiny", "small", "base", "large"] | None = dataclasses.field(default=None, kw_only=True)
    init: str
    image_size: int = _within(1)
    visual_tokenizer: str | None = None


@dataclass(frozen=True)
class Augmentation:
    """The keywords of `data.augmentation.ReferringAugmentation`."""

    crop: bool
    num_scales: int = _within(1)
    translate: bool
    color_jitter: float = _within(0, 1)
    blur: bool


@dataclass(frozen=True)
class Masking:
    """Which patches and words MRefM hides.

    strategy: `referring` (`dynamic_image_mask`), or for ablations `random` (as MAE) or `blockwise` (as BEiT).
    inside_ratio, outside_ratio: of patches near the referred box and elsewhere, for `referring`.
    image_ratio: of all patches, for `random` and `blockwise`; None is the default of their function.
    text_ratio: of the tokens of a phrase.
    parser: finds its subject and object, see `data.training.with_parsed_words`.
    """

    strategy: Literal["referring", "random", "blockwise"]
    inside_ratio: float = _within(0, 1)
    outside_ratio: float = _within(0, 1)
    text_ratio: float = _within(0, 1)
    image_ratio: float | None = _within(0, 1, default=None)
    parser: str = "en_core_web_md"


@dataclass(frozen=True)
class Data:
    """What it is trained on.

    dataset: name of a converted data set (looked up in `Recipe.converted`), anything else that
        `load_referring_dataset` reads, or `synthetic`.
    images, columns, streaming: as there (`columns` is its `column_mapping`). A stream has no epochs: it needs
        `max_steps`, the schedule `cosine_per_step` and `save_steps`. The loss `mlm` cannot stream, because phrases are
        parsed once for a whole data set.
    strict: stop at the first row, picture or annotation that cannot be used, instead of leaving it out.
    train_split: `train`, or `train_pseudo` for pseudo-labels.
    target_masks: what `mask_labels` are drawn from: `box`, or `segmentation`, which falls back on the box for records
        that have none.
    max_text_length: tokens of a phrase, BOS and EOS included; longer ones are cut.
    masking: None except in MRefM.
    """

    train_split: str
    target_masks: Literal["box", "segmentation"]
    max_text_length: int = _within(3)
    augmentation: Augmentation
    dataset: str | None = None
    images: str | None = None
    columns: dict[str, str] | str | None = None
    streaming: bool = False
    strict: bool = False
    masking: Masking | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of training with an optimiser and a schedule of its own.

    name: key in the recipe.
    init: where its weights come from: `model` (`Model.init`), or the `best` or `last` checkpoint of the stage before.
    freeze_backbone: the encoder gets no gradient; it stays in train mode, so drop path acts in it.
    batch_size: samples per step over all devices and accumulated steps.
    batch_size_per_device: the most that one device takes at once; see `split_batch`.
    max_steps: stop after so many steps; the schedule still counts on `epochs`.
    schedule: cosine from the learning rate to 0 over `epochs`, moved on after every epoch (the original) or step.
    losses: weight of every loss of `OneRefConfig.loss_weights`, 0 = off.
    """

    name: str
    init: Literal["model", "best", "last"]
    freeze_backbone: bool
    epochs: int = _within(1)
    learning_rate: float = _within(0)
    batch_size: int = _within(1)
    batch_size_per_device: int = _within(1)
    drop_path_rate: float = _within(0, 1)
    schedule: Literal["cosine_per_epoch", "cosine_per_step"]
    losses: dict[str, float]
    max_steps: int | None = _within(1, default=None)

    def split_batch(self, num_processes: int) -> tuple[int, int]:
        """Samples per process and step, and steps to accumulate, so that their product is `batch_size`.

        Raises:
            RecipeError: if `batch_size` is not a multiple of the number of processes.
        """
        share, rest = divmod(self.batch_size, num_processes)
        if rest:
            raise RecipeError(
                f"The batch of {self.batch_size} samples of stage '{self.name}' does not divide by {num_processes} "
                f"processes; use another number of processes or --stages.{self.name}.batch_size."
            )
        per_process = next(size for size in range(min(share, self.batch_size_per_device), 0, -1) if share % size == 0)
        return per_process, share // per_process


@dataclass(frozen=True)
class Optimizer:
    """weight_decay: on every parameter, biases and norms included. max_grad_norm: 0 is no clipping."""

    name: Literal["adamw"]
    weight_decay: float = _within(0)
    max_grad_norm: float = _within(0)


@dataclass(frozen=True)
class Evaluation:
    """When and on what the model is scored.

    metric: name in the metrics of `metrics.py`; the best checkpoint is the one with the highest.
    keep: the checkpoint that a stage hands on and the run ends with.
    split, dataset: scored after every epoch, of a stream after every `Run.save_steps`; None is no evaluation, and the
        data set of training.
    splits: data set -> splits that the finished model is scored on.
    """

    metric: Literal["accuracy@0.5", "miou"] | None
    keep: Literal["best", "last"]
    split: str | None
    splits: dict[str, list[str]]
    dataset: str | None = None


@dataclass(frozen=True)
class Run:
    """How it is computed; nothing here is meant to change what is learnt, except `ema_decay` and `sync_batch_norm`.

    precision: `float32` as the original, or `bfloat16` autocast.
    ema_decay: between 0 and 1, neither included; None is no moving average of the weights.
    sync_batch_norm: statistics of the mask head over all processes.
    log_steps, save_steps: optimiser steps between two of them; None saves after every epoch.
    """

    workers: int = _within(0)
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    compile: bool
    sync_batch_norm: bool
    log_steps: int = _within(1)
    save_steps: int | None = _within(1, default=None)
    ema_decay: float | None = _within(0, 1, default=None)


@dataclass(frozen=True)
class Recipe:
    """One training run, complete and checked.

    name: of the file, with the variant if there is one.
    converted: folder with converted models and data sets; see `locate`.
    output_dir: by default `outputs/NAME`, `outputs/smoke/NAME` for a smoke run.
    push_to_hub: repository that the finished model goes to, None for none.
    smoke: whether the changes of `smoke` are in it.
    """

    name: str
    task: Literal["rec", "res", "rec+res", "mrefm"]
    model: Model
    data: Data
    optimizer: Optimizer
    evaluation: Evaluation
    stages: tuple[Stage, ...]
    run: Run
    seed: int = _within(0, 2**32 - 1)
    converted: str
    output_dir: str
    push_to_hub: str | None = None
    smoke: bool = False

    @property
    def trained_on_masks_only(self) -> bool:
        """Whether no loss reaches the box head or the similarity map (`OneRefConfig.trained_on_masks_only`)."""
        active = {name for stage in self.stages for name, weight in stage.losses.items() if weight}
        return active <= {"mask_focal", "mask_dice"}

    def locate(self, name: str) -> str:
        """Where a model or data set named in the recipe is: the name itself if it is a path, else in `converted`."""
        inside = Path(self.converted, name)
        return str(inside) if inside.exists() and not Path(name).exists() else name

    def to_yaml(self) -> str:
        """A recipe file that says all of this without extending another one."""
        values = dataclasses.asdict(self)
        del values["smoke"]
        values["stages"] = {
            stage["name"]: {key: value for key, value in stage.items() if key not in _COMPUTED}
            for stage in values["stages"]
        }
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Reads a recipe with everything that it extends, applies the overrides, and checks the result.

    Args:
        path: the file.
        overrides: arguments as on a command line (`["--seed", "1", "--smoke"]`), or dotted keys and their values
            (`{"seed": 1, "smoke": True}`). The keys `variant` and `smoke` choose what the file offers.

    Raises:
        RecipeError: a file cannot be read, a key is unknown or missing, a value has the wrong type or range, or values
            contradict each other.
    """
    path = Path(path)
    raw = _merged_file(path)
    variants, smoke_changes = _variants(raw), raw.pop("smoke", None) or {}
    raw.pop("variants", None)
    changes = dict(overrides) if isinstance(overrides, Mapping) else _from_arguments(overrides)
    variant, smoke = changes.pop("variant", None), _typed(bool, changes.pop("smoke", False), "smoke")
    if variant is not None:
        if variant not in variants:
            raise RecipeError(f"{path} has no variant {variant!r}{_nearest(variant, variants)}")
        raw = _merge_recipe(raw, variants[variant])
    if smoke:
        raw = _merge_recipe(raw, smoke_changes)
        raw.pop("output_dir", None)  # that of the real run
    changes = _nested(changes)
    _check_keys(changes, _RECIPE, "the overrides")
    for stage in changes.get("stages") or {}:
        if stage not in (raw.get("stages") or {}):
            raise RecipeError(f"the overrides: there is no stage {stage!r}{_nearest(stage, raw.get('stages') or {})}")
    raw = _merge_recipe(raw, changes)
    if variants and variant is None and not _names_data(raw):
        raise RecipeError(f"{path} holds several recipes; choose one with --variant: {', '.join(variants)}.")

    raw.setdefault("name", "_".join(filter(None, [path.stem, variant])))
    raw.setdefault("output_dir", str(Path("outputs", "smoke" if smoke else "", raw["name"])))
    try:
        raw |= {"stages": _completed_stages(raw), "smoke": smoke}
        recipe = _typed(Recipe, raw, "")
        _check_consistency(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def recipes_in(folder: str | Path) -> dict[str, tuple[Path, str | None]]:
    """Every recipe below a folder: its name, its file and its variant (None for the file as it is).

    Files in folders called `templates` are there to be extended only. A file without a data set is a recipe only
    through its variants.
    """
    found = {}
    for path in sorted(Path(folder).rglob("*.yaml")):
        if "templates" in path.relative_to(folder).parts:
            continue
        raw = _merged_file(path)
        variants = list(_variants(raw))
        if not variants or _names_data(raw):
            variants.insert(0, None)
        found.update({"_".join(filter(None, [path.stem, variant])): (path, variant) for variant in variants})
    return found


def _variants(raw: dict) -> dict[str, dict]:
    return {name: changes for name, changes in (raw.get("variants") or {}).items() if changes is not None}


def _names_data(raw: dict) -> bool:
    return (raw.get("data") or {}).get("dataset") is not None


# What a file may hold: nested dictionaries are sections, anything else is the type of a value -----------------------
_ANY_NAME = "*"
_COMPUTED = ("name", "init")  # of a stage


def _sections(kind: type) -> dict:
    hints = typing.get_type_hints(kind)
    return {
        name: _sections(_bare(hint)) if dataclasses.is_dataclass(_bare(hint)) else hint for name, hint in hints.items()
    }


def _bare(hint):
    """The type without `| None`."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    return options[0] if _is_union(hint) and len(options) == 1 else hint


def _is_union(hint) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second for Literal[...] | None


_STAGE = {name: hint for name, hint in _sections(Stage).items() if name not in _COMPUTED}
_STAGE["losses"] = dict.fromkeys(DEFAULT_LOSS_WEIGHTS, bool | float)
_STAGES = {_ANY_NAME: _STAGE}
_RECIPE = {name: hint for name, hint in _sections(Recipe).items() if name != "smoke"} | {"stages": _STAGES}
_FILE = _RECIPE | {"extends": str | list[str], "variants": {_ANY_NAME: _RECIPE}, "smoke": _RECIPE}


def _check_keys(layer, schema: dict, where: str, prefix: str = "") -> None:
    if not isinstance(layer, dict):
        raise RecipeError(f"{where}: expected keys and values{prefix and f' in {prefix[:-1]}'}, found {layer!r:.60}.")
    for key, value in layer.items():
        if not isinstance(key, str) or not (key in schema or _ANY_NAME in schema):
            raise RecipeError(f"{where}: unknown key '{prefix}{key}'{_likely_key(str(key), schema)}")
        inner = schema.get(key, schema.get(_ANY_NAME))
        if isinstance(inner, dict) and value is not None:
            _check_keys(value, inner, where, f"{prefix}{key}.")


def _likely_key(key: str, schema: dict) -> str:
    """A similar key beside it, also by its initials, or else the same key elsewhere in a recipe."""
    short = [known for known in schema if key == "".join(word[0] for word in known.split("_"))]
    elsewhere = [path.replace(_ANY_NAME, "all") for path in _paths(_RECIPE) if path.rpartition(".")[2] == key]
    if difflib.get_close_matches(key, schema, n=1) or not (short or elsewhere):
        return _nearest(key, schema)
    return f"; did you mean {[*short, *elsewhere][0]!r}?"


def _paths(schema: dict, prefix: str = "") -> Iterator[str]:
    for key, inner in schema.items():
        yield f"{prefix}{key}"
        if isinstance(inner, dict):
            yield from _paths(inner, f"{prefix}{key}.")


def _nearest(name: str, known) -> str:
    """The end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known) or 'none'}."


# Files --------------------------------------------------------------------------------------------------------------
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # the last two for impossible dates and endless anchors


def _read_yaml(text: str):
    loader = _YAML_LOADER(text)
    node = loader.get_single_node()
    repeated = _repeated_key(node)
    if repeated is not None:
        raise yaml.YAMLError(f"the key {repeated!r} stands twice in one section")
    return None if node is None else loader.construct_document(node)


def _repeated_key(node: yaml.Node | None) -> str | None:
    """A key that stands twice in one mapping; YAML readers silently take the last."""
    parts = node.value if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) else []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in parts if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            return next(key for key in keys if keys.count(key) > 1)
        parts = [value for _, value in parts]
    return next(filter(None, map(_repeated_key, parts)), None)


def _merged_file(path: Path, extending: tuple[Path, ...] = ()) -> dict:
    """The file on top of what it extends."""
    if path.resolve() in extending:
        raise RecipeError(f"{path} extends itself, by way of {extending[-1]}.")
    try:
        layer = _read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"The recipe {path} cannot be read: {reason}.") from error
    except _YAML_ERRORS as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    _check_keys(layer, _FILE, str(path))
    parents = layer.pop("extends", [])
    if not isinstance(parents, (str, list)) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(f"{path}: extends names one file or a list of files, not {parents!r:.60}.")
    merged: dict = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge_recipe(merged, _merged_file(path.parent / parent, (*extending, path.resolve())))
    return _merge_recipe(merged, layer)


def _merge_recipe(base: dict, layer: dict) -> dict:
    """`layer` on top of `base`; scores of a data set that the layer replaces become those of the new one."""
    merged = _merge(base, layer, _FILE)
    old, new = ((values.get("data") or {}).get("dataset") for values in (base, merged))
    splits = (merged.get("evaluation") or {}).get("splits")
    replaced = isinstance(old, str) and isinstance(new, str) and isinstance(splits, dict) and old in splits
    if replaced and "splits" not in (layer.get("evaluation") or {}):
        merged["evaluation"] = {
            **merged["evaluation"],
            "splits": _renamed(splits, old, new),
        }
    return merged


def _renamed(splits: dict, old: str, new: str) -> dict:
    """With another name for one data set, whose splits join those that the new name has already."""
    renamed = {}
    for name, parts in splits.items():
        key = new if name == old else name
        joined = isinstance(parts, list) and isinstance(renamed.get(key), list)
        renamed[key] = list(dict.fromkeys([*renamed[key], *parts])) if joined else parts
    return renamed


def _merge(base: dict, layer: dict, schema: dict) -> dict:
    """`layer` on top of `base`: sections key by key, everything else as a whole."""
    merged = dict(base)
    for key, value in layer.items():
        inner = schema.get(key, schema.get(_ANY_NAME))
        if inner is _STAGES and value is not None:
            merged[key] = _merge_stages(base.get(key) or {}, value)
        elif isinstance(inner, dict) and value is not None:
            merged[key] = _merge(base.get(key) or {}, value, inner)
        else:
            merged[key] = value
    return merged


def _merge_stages(base: dict, layer: dict) -> dict:
    """`all` of the layer goes into every stage, then what the layer says of that stage."""
    merged = {"all": _merge(base.get("all") or {}, layer.get("all") or {}, _STAGE)}
    for name in dict.fromkeys([*base, *layer]):
        if name == "all":
            continue
        if layer.get(name, base.get(name)) is None:
            merged[name] = None  # left out, unless a later layer brings it back
        elif base.get(name) is None:
            merged[name] = _merge(merged["all"], layer[name], _STAGE)
        else:
            merged[name] = _merge(_merge(base[name], layer.get("all") or {}, _STAGE), layer.get(name) or {}, _STAGE)
    return merged


# Overrides ----------------------------------------------------------------------------------------------------------
def _from_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, or `--key` alone for true."""
    changes: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise RecipeError(f"Expected --key value, found {argument!r}.")
        if not equals:
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        if key in changes:
            raise RecipeError(f"--{key} is given twice.")
        changes[key] = _from_text(key, text)
    return changes


def _from_text(key: str, text: str):
    """The text itself where the recipe wants text, else what YAML reads."""
    kind: Any = {"variant": str, "smoke": bool, **_RECIPE}
    for part in key.split("."):
        kind = kind.get(part, kind.get(_ANY_NAME)) if isinstance(kind, dict) else None
    if _bare(kind) is str or typing.get_origin(_bare(kind)) is Literal:
        return None if text == "null" and kind is not str else text
    try:
        return _read_yaml(text)
    except _YAML_ERRORS:
        raise RecipeError(f"The value of --{key}, {text!r}, cannot be read.") from None


def _nested(changes: Mapping[str, Any]) -> dict:
    """Dotted keys become sections."""
    nested: dict = {}
    for key, value in changes.items():
        inside = next((other for other in changes if other.startswith(f"{key}.")), None)
        if inside is not None:
            raise RecipeError(f"The overrides set both {key!r} as a whole and {inside!r}.")
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


# Checks -------------------------------------------------------------------------------------------------------------
def _completed_stages(raw: dict) -> tuple[dict, ...]:
    """In order, each with what follows from the rest of the recipe."""
    stages = {name: stage for name, stage in (raw.get("stages") or {}).items() if stage is not None and name != "all"}
    needed = [field.name for field in dataclasses.fields(Stage) if field.default is dataclasses.MISSING]
    completed: list[dict] = []
    for name, stage in stages.items():
        missing = [field for field in needed if field not in (*stage, *_COMPUTED)]
        if missing:
            meant = difflib.get_close_matches(name, set(stages) - {name}, n=1)
            hint = f"did you mean the stage {meant[0]!r}?" if meant else "set it, or extend a file that does."
            raise RecipeError(f"stages.{name}.{missing[0]} is missing; {hint}")
        init = "model" if not completed else (raw.get("evaluation") or {}).get("keep")
        losses = _weights(stage["losses"], f"stages.{name}.losses")
        completed.append({**stage, "name": name, "init": init, "losses": losses})
    return tuple(completed)


def _weights(losses: dict | None, key: str) -> dict[str, float]:
    """The weight of every loss. True is the default, which the contrastive loss lacks."""
    weights = dict.fromkeys(DEFAULT_LOSS_WEIGHTS, 0.0)
    for name, value in (losses or {}).items():
        if value is True and not DEFAULT_LOSS_WEIGHTS[name]:
            raise RecipeError(f"{key}.{name} has no default weight; give a number.")
        weights[name] = DEFAULT_LOSS_WEIGHTS[name] if value is True else _typed(float, value or 0.0, f"{key}.{name}")
        if weights[name] < 0:
            raise RecipeError(f"{key}.{name} is {value}; a weight is at least 0.")
    return weights


def _typed(kind, value, key: str):
    """`value` as `kind`, without guessing; but whole numbers pass for floats, and so does text like 1e-4."""
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if _is_union(kind):
        if value is None and types.NoneType in options:
            return None
        if _bare(kind) is not kind:
            return _typed(_bare(kind), value, key)
        for option in options:
            with contextlib.suppress(RecipeError):
                return _typed(option, value, key)
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _filled(kind, value, key)
    elif origin is Literal and value in options:
        return value
    elif origin is dict and isinstance(value, dict):
        names, items = options
        return {_typed(names, name, key): _typed(items, item, f"{key}.{name}") for name, item in value.items()}
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        return origin(_typed(options[0], item, key) for item in value)
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            if math.isfinite(float(value)):
                return float(value)
    elif kind in (str, bool, int, types.NoneType) and type(value) is kind:
        return value
    raise RecipeError(f"{key}: expected {_described(kind)}, found {value!r:.60}.")


def _filled(kind: type, values: dict, key: str):
    """An instance of one of the dataclasses above."""
    if kind is Stage:
        key = f"{key}.{values['name']}"
    hints, filled = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        place = f"{key}.{field.name}" if key else field.name
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                raise RecipeError(f"{place} is missing; set it, or extend a file of templates/ that does.")
            continue
        value = filled[field.name] = _typed(hints[field.name], values[field.name], place)
        low, high = field.metadata.get("range", (None, None))
        if low is not None and value is not None and not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise RecipeError(f"{place} is {value}; it must be {bounds}.")
    return kind(**filled)


def _described(kind) -> str:
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", types.NoneType: "null"}
    if _is_union(kind):
        return " or ".join(_described(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return names.get(kind, "a list" if typing.get_origin(kind) in (list, tuple) else "keys and values")


_HEADS = {
    "mask_focal": ("res", "rec+res"),
    "mask_dice": ("res", "rec+res"),
    **dict.fromkeys(("mim", "visual_relation", "mlm", "semantic_relation"), ("mrefm",)),
}
_METRICS = {
    "rec": ("accuracy@0.5",),
    "res": ("miou",),
    "rec+res": ("accuracy@0.5", "miou"),
    "mrefm": (),  # its box head has no target
}


def _scored(recipe: Recipe) -> list[tuple[str, str]]:
    """Every data set and split that is read."""
    evaluation = recipe.evaluation
    found = [(dataset, split) for dataset, splits in evaluation.splits.items() for split in splits]
    if None not in (evaluation.metric, evaluation.split):
        found.append((evaluation.dataset or recipe.data.dataset, evaluation.split))
    return [*dict.fromkeys(found), (recipe.data.dataset, recipe.data.train_split)]


def _check_consistency(recipe: Recipe) -> None:
    if not recipe.stages:
        raise RecipeError("stages: at least one is needed.")
    for stage in recipe.stages:
        active = [name for name, weight in stage.losses.items() if weight]
        if not active:
            raise RecipeError(f"stages.{stage.name}.losses: at least one must be on.")
        for name in active:
            if recipe.task not in _HEADS.get(name, (recipe.task,)):
                raise RecipeError(f"stages.{stage.name}.losses.{name} needs a head that task {recipe.task} lacks.")
        if recipe.task == "mrefm" and recipe.model.visual_tokenizer is None and stage.losses["mim"]:
            raise RecipeError(f"stages.{stage.name}.losses.mim needs model.visual_tokenizer.")
        if recipe.data.streaming and stage.losses["mlm"]:
            raise RecipeError(
                f"stages.{stage.name}.losses.mlm cannot stream, for phrases are parsed once for a whole data set; set "
                "data.streaming to false, or switch the loss off."
            )
        stepwise = stage.max_steps is not None and stage.schedule == "cosine_per_step"
        if recipe.data.streaming and not (stepwise and recipe.run.save_steps is not None):
            raise RecipeError(
                f"data.streaming: a stream has no epochs; set stages.{stage.name}.max_steps and run.save_steps, and "
                f"stages.{stage.name}.schedule to cosine_per_step."
            )
    if (recipe.task == "mrefm") != (recipe.data.masking is not None):
        raise RecipeError("data.masking is needed for task mrefm, and for no other.")
    if recipe.data.dataset is None:
        raise RecipeError("data.dataset is missing; name a data set.")
    side, patch = recipe.model.image_size, OneRefConfig().patch_size
    if side % patch:
        raise RecipeError(f"model.image_size is {side}; it must be a multiple of {patch}.")
    if recipe.run.ema_decay in (0, 1):
        raise RecipeError(f"run.ema_decay is {recipe.run.ema_decay}; it must lie between 0 and 1.")
    for dataset, split in _scored(recipe):
        if dataset == SYNTHETIC and split not in SYNTHETIC_SPLITS:
            raise RecipeError(
                f"The data set {SYNTHETIC} has no split {split!r}, only {' and '.join(SYNTHETIC_SPLITS)}; set "
                "evaluation.split and evaluation.splits."
            )
    if recipe.model.size is None and FRESH in (recipe.model.init, recipe.model.visual_tokenizer):
        raise RecipeError(f"model.size is missing; something {FRESH} needs one ({', '.join(MODEL_SIZES)}).")
    metric = recipe.evaluation.metric
    if metric is not None and metric not in _METRICS[recipe.task]:
        raise RecipeError(f"evaluation.metric: task {recipe.task} has no {metric}.")
    if recipe.evaluation.keep == "best" and None in (metric, recipe.evaluation.split):
        raise RecipeError("evaluation.keep is best, which needs evaluation.metric and evaluation.split.")


__all__ = ["FRESH", "MODEL_SIZES", "SYNTHETIC", "Recipe", "RecipeError", "Stage", "load_recipe", "recipes_in"]
