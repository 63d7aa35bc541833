# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Renders the model cards from `conversion/checkpoints.yaml` and `template.md`.

    python model_cards/render.py                                    every card, into this folder
    python model_cards/render.py --output DIR --only 'rec-base-*'

`render_card(row)` gives one card as text; a converter calls it with the row of the manifest that it converted.
"""

import argparse
import fnmatch
import functools
import sys
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined  # comes with torch

from oneref_hf.recipes import RecipeError, load_recipe, recipes_in


HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "training" / "recipes"
sys.path.insert(0, str(HERE.parent / "conversion"))
from manifest import Dataset, Manifest, ManifestError, ModelRow, load_manifest  # noqa: E402


# metric: (type on the Hub, name, definition)
METRICS = {
    "acc": ("accuracy", "accuracy at IoU 0.5", "Accuracy: share of boxes whose IoU with the target is at least 0.5."),
    "miou": ("mean_iou", "mean IoU", "Mean IoU: the IoU of the masks averaged over phrases."),
    "oiou": ("overall_iou", "overall IoU", "Overall IoU: summed intersections over summed unions."),
}
TASK_NAMES = {"rec": "referring expression comprehension", "res": "referring expression segmentation"}
TASK_TAGS = {
    "rec": ["referring-expression-comprehension", "visual-grounding"],
    "res": ["referring-expression-segmentation", "visual-grounding"],
    "beit3": ["beit3"],
    "vqkd": ["vq-kd", "visual-tokenizer"],
}
PIPELINE_TAGS = {
    "grounding": "zero-shot-object-detection",
    "segmentation": "image-segmentation",
    "pretraining": "feature-extraction",
    "backbone": "feature-extraction",
    "tokenizer": "image-feature-extraction",
}


def render_card(
    row: ModelRow, *, model: str | None = None, sha256: str | None = None, manifest: Manifest | None = None
) -> str:
    """The card of one released model.

    Args:
        row: its row of the manifest.
        model: directory or repository that the usage lines load; by default `converted/NAME`.
        sha256: checksum of the source file, for the card of a directory that was really converted.
        manifest: where `row` comes from, if it is at hand.

    Returns:
        Markdown with YAML metadata.
    """
    manifest = manifest or load_manifest()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((HERE / "template.md").read_text(encoding="utf-8"))
    model = model or f"converted/{row.name}"
    data = _training_data(row, manifest)
    title = _title(row, data)
    metrics = list(dict.fromkeys(result.metric for result in row.results))
    path, variant = _all_recipes()[row.recipe] if row.recipe else (None, None)
    return template.render(
        row=row,
        kind=row.kind,
        task_name=TASK_NAMES.get(row.task),
        metadata=_metadata(row, manifest, title, data),
        title=title,
        model=model,
        data=data,
        data_names=_listing([entry.name for entry in data]),
        data_counts=_listing([f"{entry.name} ({entry.counts['train']:,} phrases)" for entry in data]),
        results=_result_lines(row, manifest, metrics),
        metric_names=[METRICS[metric][1] for metric in metrics],
        metric_definitions=" ".join(METRICS[metric][2] for metric in metrics),
        recipe=path and load_recipe(path, {"variant": variant} if variant else {}),
        train_command=path and _train_command(row, path, variant),
        file_size=f"{row.approx_gb:g} GB" if row.approx_gb >= 1 else f"{1000 * row.approx_gb:.0f} MB",
        command=_command(row, model),
        sha256=sha256,
        paper=manifest.paper,
    )


def _training_data(row: ModelRow, manifest: Manifest) -> list[Dataset]:
    """The single datasets behind a row; none where the release does not say."""
    if row.dataset is None:
        return []
    return [manifest.datasets[key] for key in manifest.datasets[row.dataset].parts or (row.dataset,)]


def _title(row: ModelRow, data: list[Dataset]) -> str:
    if row.kind == "backbone":
        return f"BEiT-3 {row.size}, in-domain, 224 pixels"
    if row.kind == "tokenizer":
        return "VQ-KD visual tokenizer (BEiT v2)"
    model = f"OneRef {row.size}, {row.task.upper()}"
    if row.kind == "pretraining":
        return f"{model}, MRefM backbone"
    if row.setting == "survey":
        return f"{model}, of the survey of visual grounding"
    trained_on = data[0].name if len(data) == 1 else "RefCOCO/+/g mixture"
    return f"{model}, {trained_on}{' after MRefM' if row.setting == 'mixup' else ''}"


def _metadata(row: ModelRow, manifest: Manifest, title: str, data: list[Dataset]) -> str:
    paper = manifest.paper
    evaluations = []
    for result in row.results:
        metric_type, metric_name, _ = METRICS[result.metric]
        dataset = manifest.datasets[result.dataset]
        evaluations.append(
            EvalResult(
                task_type=PIPELINE_TAGS[row.kind],
                task_name=TASK_NAMES[row.task],
                dataset_type=dataset.id,
                dataset_name=dataset.name,
                dataset_split=result.split,
                metric_type=metric_type,
                metric_name=metric_name,
                metric_value=result.value,
                source_name=f"OneRef paper ({paper['venue']} {paper['year']})",
                source_url=f"https://arxiv.org/abs/{paper['arxiv']}",
            )
        )
    metadata = ModelCardData(
        language="en" if row.kind != "tokenizer" else None,
        license="apache-2.0" if row.task in TASK_NAMES else "mit",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[row.kind],
        base_model=manifest.repos[0],
        tags=["oneref", *TASK_TAGS[row.task]],
        datasets=[entry.id for entry in data] or None,
        metrics=list(dict.fromkeys(entry.metric_type for entry in evaluations)) or None,
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
    )
    return metadata.to_yaml().strip()


def _result_lines(row: ModelRow, manifest: Manifest, metrics: list[str]) -> list[dict]:
    """One line per dataset and split, with a score per metric."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for result in row.results:
        scores.setdefault((result.dataset, result.split), {})[result.metric] = result.value
    return [
        {"dataset": manifest.datasets[key].name, "split": split, "scores": [found[metric] for metric in metrics]}
        for (key, split), found in scores.items()
    ]


def _command(row: ModelRow, model: str) -> str:
    script = "convert_vqkd" if row.kind == "tokenizer" else "convert_oneref"
    return f"python conversion/{script}.py --name {row.name} --output {model}"


@functools.cache
def _all_recipes() -> dict[str, tuple[Path, str | None]]:
    return recipes_in(RECIPES)


def _train_command(row: ModelRow, path: Path, variant: str | None) -> str:
    script = "pretrain_mrefm" if row.kind == "pretraining" else "finetune"
    recipe = f"training/recipes/{path.name}" + (f" --variant {variant}" if variant else "")
    return f"accelerate launch training/{script}.py {recipe} --data.images IMAGES"


def _listing(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="default: the folder of this script")
    parser.add_argument("--only", default="*", metavar="GLOB", help="models of such names alone")
    args = parser.parse_args(arguments)
    try:
        manifest = load_manifest()
        rows = [row for row in manifest if fnmatch.fnmatch(row.name, args.only)]
        if not rows:
            raise ManifestError(f"no released model has a name like {args.only!r}.")
        args.output.mkdir(parents=True, exist_ok=True)
        for row in rows:
            staged = args.output / f".{row.name}.md.partial"
            staged.write_text(render_card(row, manifest=manifest), encoding="utf-8")
            staged.replace(args.output / f"{row.name}.md")
    except (ManifestError, RecipeError, OSError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    print(f"{len(rows)} cards in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
