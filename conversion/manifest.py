# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads `checkpoints.yaml` and expands it to one typed row per released model."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


MANIFEST = Path(__file__).with_name("checkpoints.yaml")

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there

TASKS = ("rec", "res", "beit3", "vqkd")
SETTINGS = ("single_dataset", "mixup", "mrefm", "survey")
SIZES = ("base", "large")
METRICS = ("acc", "miou", "oiou")

_SETTING_IN_RECIPE = {"single_dataset": "single", "mixup": "mixed"}
_KIND_OF_TASK = {"rec": "grounding", "res": "segmentation", "beit3": "backbone", "vqkd": "tokenizer"}


class ManifestError(ValueError):
    """The manifest holds something that does not fit, or lacks what was asked for."""


@dataclass(frozen=True)
class Result:
    """One published score, in percent."""

    metric: str  # acc, miou or oiou
    dataset: str
    split: str
    value: float


@dataclass(frozen=True)
class Dataset:
    """One dataset key of the original and what is known of its released annotation files."""

    key: str
    name: str
    id: str
    counts: dict[str, int]
    images: str | None = None  # folder below the image root; a mixture has several
    refer: tuple[str, str] | None = None
    parts: tuple[str, ...] = ()
    evaluation: str | None = None  # the part that lends a mixture its val and test splits


@dataclass(frozen=True)
class Cost:
    """What a training took, roughly."""

    devices: str
    hours: int


@dataclass(frozen=True)
class ModelRow:
    """One released model. What the sources do not say is None or empty."""

    name: str
    task: str
    setting: str | None
    size: str
    repos: tuple[str, ...]  # in the order to try
    file: str  # with a plain plus sign
    member: str | None  # path inside the archive
    approx_gb: float  # of the file
    dataset: str | None
    uncertain: tuple[str, ...]
    results: tuple[Result, ...]
    recipe: str | None  # in training/recipes, as `oneref_hf.recipes.recipes_in` names it
    parameters: int | None  # of the original model
    cost: Cost | None  # of its training

    @property
    def kind(self) -> str:
        """What it converts to: grounding, segmentation, pretraining, backbone or tokenizer."""
        return "pretraining" if self.setting == "mrefm" else _KIND_OF_TASK[self.task]

    @property
    def hub_files(self) -> tuple[str, ...]:
        """Names to try in each repository: as written, then with the plus sign percent-encoded."""
        return tuple(dict.fromkeys((self.file, self.file.replace("+", "%2B"))))


@dataclass(frozen=True)
class Manifest:
    """The expanded manifest; iterating gives its model rows."""

    repos: tuple[str, ...]
    tokenizer: str  # the SentencePiece file in the repositories
    paper: dict
    models: tuple[ModelRow, ...]
    datasets: dict[str, Dataset]

    def __iter__(self) -> Iterator[ModelRow]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def model(self, name: str) -> ModelRow:
        rows = {row.name: row for row in self.models}
        if name not in rows:
            raise ManifestError(f"no released model is called {name!r}{_nearest(name, list(rows))}.")
        return rows[name]

    def dataset(self, name: str) -> Dataset:
        """The dataset with this key or short id; `refcoco+` is read as `refcoco-plus`."""
        wanted = name.lower().replace("+", "-plus") if name not in self.datasets else None
        for entry in self.datasets.values():
            if name == entry.key or wanted == entry.id:
                return entry
        known = [name for entry in self.datasets.values() for name in (entry.key, entry.id)]
        raise ManifestError(f"no dataset is called {name!r}{_nearest(name, known)}.")


def load_manifest(path: str | Path = MANIFEST) -> Manifest:
    """Reads, checks and expands the manifest.

    Raises:
        ManifestError: a key is unknown, missing or of the wrong type, or two rows collide; the message says where.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), _YAML_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    top = "schema repos tokenizer paper files results parameters mrefm_cost datasets"
    _check_keys(raw, "the manifest", required=top)
    if raw["schema"] != 1:
        raise ManifestError(f"the manifest has schema {raw['schema']!r}; this version reads schema 1.")
    _check_keys(raw["paper"], "paper", required="title authors venue year arxiv code")
    _check_keys(raw["mrefm_cost"], "mrefm_cost", required="devices hours")
    _check_keys(raw["mrefm_cost"]["hours"], "mrefm_cost, hours", required=" ".join(SIZES))

    datasets = _read_datasets(raw["datasets"])
    results = _read_results(raw["results"], datasets)
    models = []
    for number, entry in enumerate(_typed(raw["files"], list, "files"), start=1):
        models += _expand_file(entry, f"files, row {number}", raw, datasets, results)
    for field in ("name", "recipe"):
        values = [getattr(row, field) for row in models if getattr(row, field) is not None]
        for value in set(values):
            if values.count(value) > 1:
                raise ManifestError(f"files: two models have the {field} {value!r}.")
    return Manifest(
        repos=tuple(_typed(raw["repos"], list, "repos")),
        tokenizer=_typed(raw["tokenizer"], str, "tokenizer"),
        paper=raw["paper"],
        models=tuple(models),
        datasets=datasets,
    )


def _read_datasets(raw) -> dict[str, Dataset]:
    datasets = {}
    for key, entry in _typed(raw, dict, "datasets").items():
        where = f"datasets, {key}"
        _check_keys(entry, where, required="name id counts", optional="images refer parts evaluation")
        if ("images" in entry) == ("parts" in entry):
            raise ManifestError(f"{where}: exactly one of images and parts is needed.")
        if "parts" in entry:
            _check_choice(entry.get("evaluation"), tuple(entry["parts"]), f"{where}, evaluation")
        for split, count in _typed(entry["counts"], dict, where).items():
            _typed(count, int, f"{where}, counts, {split}")
        unknown = [part for part in entry.get("parts", []) if part not in raw]
        if unknown:
            raise ManifestError(f"{where}: the part {unknown[0]!r} is not a dataset.")
        refer = tuple(entry["refer"]) if "refer" in entry else None
        datasets[key] = Dataset(key=key, **{**entry, "refer": refer, "parts": tuple(entry.get("parts", []))})
    return datasets


def _read_results(raw, datasets: dict[str, Dataset]) -> dict[tuple, list[Result]]:
    """Scores by (task, setting, size)."""
    results: dict[tuple, list[Result]] = {}
    for number, entry in enumerate(_typed(raw, list, "results"), start=1):
        where = f"results, row {number}"
        _check_keys(entry, where, required="task setting size metric", optional=" ".join(datasets))
        _check_choice(entry["metric"], METRICS, f"{where}, metric")
        scores = results.setdefault((entry["task"], entry["setting"], entry["size"]), [])
        for key in datasets:
            for split, value in entry.get(key, {}).items():
                if split not in datasets[key].counts:
                    raise ManifestError(f"{where}: {key} has no split {split!r}.")
                if not 0 <= _typed(value, float, f"{where}, {key} {split}") <= 100:
                    raise ManifestError(f"{where}: {value} for {key} {split} is not a percentage.")
                scores.append(Result(entry["metric"], key, split, value))
    return results


def _expand_file(entry, where: str, raw: dict, datasets, results) -> list[ModelRow]:
    _check_keys(
        entry,
        where,
        required="task size file approx_gb",
        optional="name setting dataset member members uncertain",
    )
    task, size = entry["task"], entry["size"]
    setting = entry.get("setting")
    _check_choice(task, TASKS, f"{where}, task")
    _check_choice(size, SIZES, f"{where}, size")
    if task in ("rec", "res"):
        _check_choice(setting, SETTINGS, f"{where}, setting")
    _typed(entry["file"], str, f"{where}, file")
    _typed(entry["approx_gb"], float, f"{where}, approx_gb")
    if "members" in entry and ({"member", "dataset", "name"} & set(entry)):
        raise ManifestError(f"{where}: a row with members takes no name, dataset or member of its own.")
    uncertain = tuple(entry.get("uncertain", []))
    for field in uncertain:
        _check_choice(field, ("file", "member", "dataset"), f"{where}, uncertain")

    members = entry.get("members", {entry.get("dataset"): entry.get("member")})
    rows = []
    for key, member in members.items():
        if key is not None:
            _check_choice(key, tuple(datasets), f"{where}, dataset")
        if (member is not None) != entry["file"].endswith(".zip"):
            raise ManifestError(f"{where}: an archive, and only an archive, needs a member for each model.")
        rows.append(
            ModelRow(
                name=entry.get("name") or _model_name(task, setting, size, key and datasets[key]),
                task=task,
                setting=setting,
                size=size,
                repos=tuple(raw["repos"]),
                file=entry["file"],
                member=member,
                approx_gb=entry["approx_gb"],
                dataset=key,
                uncertain=uncertain,
                results=_results_of(results.get((task, setting, size), []), setting, key and datasets[key]),
                recipe=_recipe_name(task, setting, size, key and datasets[key]),
                parameters=raw["parameters"][size].get("mrefm" if setting == "mrefm" else task),
                cost=_mrefm_cost(raw["mrefm_cost"], size) if setting == "mrefm" else None,
            )
        )
    return rows


def _mrefm_cost(raw: dict, size: str) -> Cost:
    return Cost(
        devices=_typed(raw["devices"], str, "mrefm_cost, devices"),
        hours=_typed(raw["hours"][size], int, f"mrefm_cost, hours, {size}"),
    )


def _model_name(task: str, setting: str, size: str, dataset: Dataset) -> str:
    if setting == "mrefm":
        return f"mrefm-{task}-{size}"
    if setting == "mixup":
        return f"{task}-{size}-mixed" + ("" if dataset.parts else f"-{dataset.id}")
    return f"{task}-{size}-{dataset.id}"


def _recipe_name(task: str, setting: str | None, size: str, dataset: Dataset | None) -> str | None:
    """None where the release says nothing of the training."""
    if setting in (None, "survey") or dataset is None:
        return None
    if setting == "mrefm":
        return f"mrefm_{task}_{size}"
    ending = "" if dataset.parts else "_" + dataset.id.replace("-", "_")
    return f"{task}_{_SETTING_IN_RECIPE[setting]}_{size}{ending}"


def _results_of(scores: list[Result], setting: str | None, dataset: Dataset | None) -> tuple[Result, ...]:
    if dataset is None or setting == "mrefm":
        return ()
    wanted = dataset.parts or (dataset.key,)
    if setting == "mixup" and not dataset.parts:
        return ()  # the mixed table has the scores of the mixture alone
    return tuple(score for score in scores if score.dataset in wanted)


def _check_keys(entry, where: str, required: str, optional: str = "") -> None:
    keys, needed = set(_typed(entry, dict, where)), required.split()
    unknown = sorted(str(key) for key in keys - set(needed) - set(optional.split()))
    if unknown:
        raise ManifestError(f"{where}: unknown key {unknown[0]!r}{_nearest(unknown[0], needed + optional.split())}.")
    missing = [key for key in needed if key not in keys]
    if missing:
        raise ManifestError(f"{where}: {missing[0]!r} is missing.")


def _check_choice(value, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise ManifestError(f"{where}: {value!r} is not one of {', '.join(choices)}.")


def _typed(value, kind: type, where: str):
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits:
        raise ManifestError(f"{where}: expected a {kind.__name__}, found {value!r:.60}.")
    return value


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
