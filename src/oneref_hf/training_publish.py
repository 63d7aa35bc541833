# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""A finished run as others find it: a model card beside the weights, and the way to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .complete_output import write_text
from .recipes import FRESH, Recipe, RecipeError


_TAGS = {
    "rec": ("zero-shot-object-detection", ["referring-expression-comprehension"]),
    "res": ("image-segmentation", ["referring-expression-segmentation"]),
    "rec+res": ("image-segmentation", ["referring-expression-comprehension", "referring-expression-segmentation"]),
    "mrefm": (None, ["mask-referring-modeling"]),
}
_ANSWERS = {
    "rec": "the box of what a phrase means in a picture",
    "res": "the mask of what a phrase means in a picture",
    "rec+res": "the box and the mask of what a phrase means in a picture",
    "mrefm": "features to start fine-tuning from",
}
_CARD = """\
---
{metadata}---

# {title}

[OneRef](https://github.com/linhuixiao/OneRef), trained with oneref-hf for {answers}. It started from {start} and was
trained on `{dataset}` (split `{split}`).
{use}{scores}
## Training

| stage | encoder | epochs | learning rate | batch | losses |
|---|---|---|---|---|---|
{stages}
"""
_USE = """
## Use

```python
import oneref_hf
from transformers import pipeline

finder = pipeline("referring-expression", model="{model}")
finder("picture.jpg", "the woman left of the old lady")
```
"""
_SCORES = """
## Scores

| data set | split | metric | value |
|---|---|---|---|
{rows}
"""


def write_card(recipe: Recipe, scores: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path) -> None:
    """Writes `README.md` into the folder of a finished model, unless there is one.

    Args:
        scores: data set -> split -> metric -> value, as in `results.json`; may be empty.
    """
    import yaml

    if (folder / "README.md").exists():
        return
    pipeline_tag, tags = _TAGS[recipe.task]
    metadata = {"library_name": "transformers", "tags": ["oneref", "visual-grounding", *tags]}
    if pipeline_tag is not None:
        metadata["pipeline_tag"] = pipeline_tag
    model = recipe.push_to_hub or str(folder)
    rows = [
        f"| {dataset} | {split} | {metric} | {value:g} |"
        for dataset, splits in scores.items()
        for split, values in splits.items()
        for metric, value in values.items()
    ]
    stages = [
        f"| {stage.name} | {'frozen' if stage.freeze_backbone else 'trained'} | {stage.epochs} | "
        f"{stage.learning_rate:g} | {stage.batch_size} | "
        f"{', '.join(f'{name} {weight:g}' for name, weight in stage.losses.items() if weight)} |"
        for stage in recipe.stages
    ]
    text = _CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        title=model.rstrip("/").rpartition("/")[2] if recipe.push_to_hub else recipe.name,
        answers=_ANSWERS[recipe.task],
        start="random weights" if recipe.model.init == FRESH else f"`{Path(recipe.model.init).name}`",
        dataset=Path(recipe.data.dataset).name,
        split=recipe.data.train_split,
        use="" if recipe.task == "mrefm" else _USE.format(model=model),
        scores=_SCORES.format(rows="\n".join(rows)) if rows else "",
        stages="\n".join(stages),
    )
    write_text(folder / "README.md", text)


def require_login(recipe: Recipe) -> None:
    """Before the training rather than after it.

    Raises:
        RecipeError: if the recipe pushes and nobody is logged in.
    """
    from huggingface_hub import get_token

    if recipe.push_to_hub is not None and get_token() is None:
        raise RecipeError("push_to_hub: nobody is logged in to the Hub; run `hf auth login` or set HF_TOKEN.")


def push(folder: Path, repo_id: str) -> None:
    """The finished model with its processor, code and card as one commit.

    A repository that is not there yet is made, a public one; make a private one beforehand to keep the model private.

    Raises:
        RecipeError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="A model trained with oneref-hf")
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"push_to_hub: the model is finished in '{folder}', but could not be pushed to {repo_id} ({reason}); the "
            "same command tries again."
        ) from error


__all__ = ["push", "require_login", "write_card"]
