# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What mkdocs finds besides the pages of this folder: the README, the change log, and one page per public module."""

import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "oneref_hf"
# Title of a group of modules, and how their names begin, without the package's; what fits nowhere comes last.
GROUPS = {
    "Models": ("configuration_", "modeling_", "loss_"),
    "Pictures and phrases": ("processing_", "image_processing_", "letterbox_"),
    "Asking and showing": ("pipeline_", "visualization", "illustrations", "prediction", "cli", "commands", "demo"),
    "Scenes": ("data.scenes",),
    "Data": ("data",),
    "Scores": ("metrics", "evaluation"),
    "Training": ("train", "recipes"),
}
OTHERS = "More"


def public_modules() -> list[str]:
    """Dotted names of all modules without an underscore in front, in alphabetical order."""
    paths = [path.relative_to(SOURCE.parent).with_suffix("") for path in SOURCE.rglob("*.py")]
    parts = [path.parts[:-1] if path.name == "__init__" else path.parts for path in paths]
    return sorted(".".join(names) for names in parts if not any(name.startswith("_") for name in names))


def grouped() -> dict[str, list[str]]:
    """The modules of each group; none is left out."""
    groups: dict[str, list[str]] = {title: [] for title in [*GROUPS, OTHERS]}
    for module in public_modules():
        name = module.partition(".")[2]
        titles = (title for title, beginnings in GROUPS.items() if name.startswith(beginnings))
        groups[next(titles, OTHERS)].append(module)
    return {title: modules for title, modules in groups.items() if modules}


def on_config(config):
    reference = [
        {title: [{module.partition(".")[2] or module: f"api/{module}.md"} for module in modules]}
        for title, modules in grouped().items()
    ]
    config.nav = [
        {"Home": "index.md"},
        {"README": "readme.md"},
        {
            "Guides": [
                "guides/answers.md",
                "guides/inside.md",
                "guides/data.md",
                "guides/training.md",
                "guides/speed.md",
            ]
        },
        {"Reference": ["api/index.md", *reference]},
        {"Changes": "changelog.md"},
    ]
    return config


def on_files(files, config):
    files.append(File.generated(config, "readme.md", content=readme_page((ROOT / "README.md").read_text("utf-8"))))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    files.append(File.generated(config, "changelog.md", content=changes))
    files.append(File.generated(config, "api/index.md", content=index_page()))
    for module in public_modules():
        page = f"---\ntitle: {module.partition('.')[2] or module}\n---\n\n::: {module}\n"
        files.append(File.generated(config, f"api/{module}.md", content=page))
    return files


def readme_page(text: str) -> str:
    """The README with its links to pictures as this site has them, and links to other files as plain code."""
    text = text.replace("](docs/", "](")

    def link(match: re.Match) -> str:
        label, target = match.groups()
        if target.startswith(("#", "https://", "images/")):
            return match[0]
        return label if label.startswith("`") or label == target else f"{label} (`{target}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, text)


def index_page() -> str:
    """What there is, by group."""
    lines = ["# Reference", "", "Every public module with its classes and functions. Those below are importable from"]
    lines += ["`oneref_hf` itself; everything else from its module.", ""]
    source = (SOURCE / "__init__.py").read_text("utf-8")
    for module, names in re.findall(r'"(\w+)": \[([^\]]+)\]', source):
        links = [f"[`{name}`][oneref_hf.{module}.{name}]" for name in re.findall(r'"(\w+)"', names)]
        lines.append(f"- {', '.join(links)}")
    for title, modules in grouped().items():
        lines += ["", f"## {title}", "", "| module | |", "|---|---|"]
        lines += [f"| [`{module}`]({module}.md) | {_first_sentence(module)} |" for module in modules]
    return "\n".join(lines) + "\n"


def _first_sentence(module: str) -> str:
    path = ROOT / "src" / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = re.search(r'"""(.+?)(?:\n\n|""")', path.read_text("utf-8"), re.DOTALL)[1]
    return " ".join(docstring.split()).replace("|", "\\|")
