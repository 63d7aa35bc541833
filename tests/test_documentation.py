# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The documentation builds without a warning, its links lead somewhere, its pictures are those that are drawn, and
every public docstring gives the shapes of its tensors and the errors that are raised."""

import ast
import functools
import importlib
import importlib.metadata
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import yaml
from manifest import load_manifest
from PIL import Image
from scripts import load_script

import oneref_hf
from oneref_hf import OneRefForSegmentation, cli


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


hooks, make_images = (load_script(DOCS / f"{name}.py") for name in ("hooks", "make_images"))


# The site ---------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """What a page loads, links to, and can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded, self.linked, self.anchors, self.text = [], [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preconnect", "preload", "icon"):
            self.loaded.append(values["href"])
        if tag == "a" and values.get("href"):
            self.linked.append(values["href"])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """The pages of the site, built as strictly as mkdocs can."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    config.plugins.on_shutdown()
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def test_links_of_the_site_lead_somewhere(site):
    checked = 0
    for path, page in site.items():
        for target in page.linked:
            parts = urlparse(target)
            if parts.scheme in ("http", "https", "mailto") or path.name == "404.html":
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert goal.exists(), f"{path.name}: {target}"
            fragment = unquote(parts.fragment)
            if fragment and not fragment.startswith("__"):
                assert goal in site and fragment in site[goal].anchors, f"{path.name}: {target}"
            checked += 1
    assert checked > 1000


def test_the_site_loads_nothing_from_elsewhere(site):
    for path, page in site.items():
        for target in page.loaded:
            assert not urlparse(target).netloc, f"{path.name} loads {target}"
            if path.name != "404.html":
                assert (path.parent / unquote(urlparse(target).path)).exists(), f"{path.name}: {target}"


def test_every_public_object_has_its_place(site):
    """Headings for what the package exports, and no reference that was left as text."""
    anchors = set().union(*(page.anchors for page in site.values()))
    for module, names in oneref_hf._PUBLIC_NAMES.items():
        assert {f"oneref_hf.{module}.{name}" for name in names} <= anchors
    assert {
        f"oneref_hf.{name}" for name in ("modeling_oneref.OneRefForGrounding.forward", "metrics.box_iou")
    } <= anchors
    for path, page in site.items():
        left = re.findall(r"\[`?~?[\w.]+`?\]\[|\[`~?[\w.]+`\]", page.text)
        assert not left, f"{path.name}: {left[0]}"


# Pictures ---------------------------------------------------------------------------------------------------------
def drawn(name: str, folder: Path) -> np.ndarray:
    assert make_images.main([name, "--output", str(folder)]) == 0
    return np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), dtype=np.float32)


@pytest.mark.parametrize("name", ["scenes", "masking", "visual_relation"])
def test_pictures_are_those_that_are_drawn(name, tmp_path):
    """To what another version of Pillow may change in letters."""
    kept = np.asarray(Image.open(DOCS / "images" / f"{name}.png").convert("RGB"), dtype=np.float32)
    fresh = drawn(name, tmp_path)
    assert kept.shape == fresh.shape
    assert np.abs(kept - fresh).mean() < 4


def test_pictures_of_a_model(golden_model, tiny_processor, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    golden_model(OneRefForSegmentation).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    monkeypatch.setattr(cli, "default_model", lambda: str(folder))
    make_images._model.cache_clear()
    for name in ("semantic_relation", "quickstart", "figure"):
        assert drawn(name, tmp_path).std() > 10
    make_images._model.cache_clear()

    def none():
        raise cli.CommandError("There is no model.")

    monkeypatch.setattr(cli, "default_model", none)
    assert make_images.main(["quickstart", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "make_images: There is no model."


@pytest.mark.parametrize(("name", "options"), [("quickstart", ["18"]), ("figure", ["13", "--figure"])])
def test_the_readme_shows_what_its_command_writes(name, options, tmp_path):
    """With the model of the package; in 256 colours, and at the size that the README needs."""
    written = tmp_path / "answer.png"
    assert cli.main(["ground", "--example", *options, "--output", str(written), "--device", "cpu"]) == 0
    with Image.open(DOCS / "images" / f"{name}.png") as kept, Image.open(written) as answer:
        assert kept.width / kept.height == pytest.approx(answer.width / answer.height, rel=0.01)
        answer, kept = (np.asarray(image.convert("RGB").resize(kept.size), float) for image in (answer, kept))
    assert np.abs(kept - answer).mean() < 4


def test_pictures_that_are_shown_exist():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


# Docstrings -------------------------------------------------------------------------------------------------------
# Packages of the project that need a distribution which an optional extra installs.
_OF_EXTRAS = {"oneref_hf.demo": "gradio", "oneref_hf.export": "onnx"}
_TENSOR = re.compile(r"Tensor\b|ndarray\b")
_SIDE = r"[\w*+/.]+(?: [*+/-] [\w*+/.]+)*"
# `(B, 4)`, `(N,)`, `(B, S / p, S / p)`, or `()` for a single number.
_SHAPE = re.compile(rf"(?<!\w)\((?:{_SIDE}(?:, ?{_SIDE})*,|{_SIDE}(?:, ?{_SIDE})+)?\)")
_REFERENCE = re.compile(r"(?:[Aa]s in|[Aa]s for|[Ss]ee|[Uu]ndoes|[Oo]f|as)\s+\[?`~?([\w.]+)`")


def imported(name: str):
    """The module, or None where it belongs to an extra that is not installed here."""
    for package, distribution in _OF_EXTRAS.items():
        if name.startswith(package) and not any(importlib.metadata.distributions(name=distribution)):
            return None
    return importlib.import_module(name)


def public_objects() -> Iterator[tuple[str, object]]:
    """Every class, function and method that users may call, by its dotted name."""
    for name in hooks.public_modules():
        module = imported(name)
        if module is None:
            continue
        names = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        for key in names:
            value = getattr(module, key)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value.__module__ != name:
                continue
            yield f"{name}.{key}", value
            if inspect.isclass(value):
                for method, member in vars(value).items():
                    function = inspect.unwrap(getattr(member, "__func__", member))
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{name}.{key}.{method}", function


@functools.cache
def objects() -> dict[str, object]:
    return dict(public_objects())


def docstring_of(name: str) -> str:
    """As a reader finds it: a method without one has that of the method it overrides."""
    *owner, method = name.split(".")
    owner = objects().get(".".join(owner))
    value = getattr(owner, method, None) if inspect.isclass(owner) else objects()[name]
    return (inspect.getdoc(value) or "").strip()


def overrides(name: str) -> bool:
    """Whether it is a method that another class, perhaps of a library, explains."""
    owner, _, method = name.rpartition(".")
    bases = objects()[owner].__mro__[1:] if owner in objects() else ()
    return any(method in vars(base) for base in bases)


def text_about(name: str) -> str:
    """The docstring, its class's and module's, which say what all have in common, and those that it refers to."""
    owner = name.rpartition(".")[0]
    texts = [docstring_of(name)]
    texts += [docstring_of(owner), owner.rpartition(".")[0]] if owner in objects() else [owner]
    texts[-1] = inspect.getdoc(sys.modules[texts[-1]]) or ""
    for reference in _REFERENCE.findall(texts[0]):
        start, _, method = reference.rpartition(".")
        for other, value in objects().items():
            if other.endswith(f".{reference}"):
                texts.append(docstring_of(other))
            elif method and start and other.endswith(f".{start}") and hasattr(value, method):
                texts.append(inspect.getdoc(getattr(value, method)) or "")
    return "\n\n".join(texts)


def annotations_of(value) -> dict[str, str]:
    target = value.__init__ if inspect.isclass(value) else value
    found = getattr(target, "__annotations__", {})
    return {
        name: annotation if isinstance(annotation, str) else repr(annotation) for name, annotation in found.items()
    }


def test_every_public_object_has_a_docstring():
    assert len(objects()) > 250
    assert [name for name in objects() if not docstring_of(name) and not overrides(name)] == []
    for name in hooks.public_modules():
        module = imported(name)
        assert module is None or module.__doc__, name


def test_docstrings_give_the_shapes_of_tensors():
    """A tensor that is taken or returned has its shape in its entry; where it has no entry, the text has one."""
    missing = []
    for name, value in objects().items():
        if not docstring_of(name) and overrides(name):
            continue
        tensors = [argument for argument, kind in annotations_of(value).items() if is_tensor(kind)]
        text = text_about(name)
        entries = {argument: entry_of(argument, docstring_of(name)) for argument in tensors}
        missing += [f"{name}: {argument}" for argument in tensors if not says_shape(entries[argument] or text)]
    assert missing == [], "\n".join(missing)


def is_tensor(annotation: str) -> bool:
    """Tensors and tuples of them; not pictures of any kind, nor dictionaries, whose keys have shapes of their own."""
    return bool(_TENSOR.search(annotation)) and not re.search(r"PIL|dict|Mapping", annotation)


def says_shape(text: str) -> bool:
    """A shape, or that there is none, or that it is said elsewhere."""
    return bool(_SHAPE.search(text) or re.search(r"\bscalar\b|\b[Aa]s (in|there)\b|\blayout of\b", text))


def entry_of(argument: str, text: str) -> str | None:
    """What an Args or Returns section says of one argument, or the section of that name."""
    if argument in ("return", "Raises"):
        title = argument.replace("return", "Returns")
        match = re.search(rf"^{title}:\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        return match and match[1]
    match = re.search(
        rf"^( *)(?:[\w, \n]*\b)?{argument}\b[^\n]*:(?:[^\n]*\n(?:\1 +[^\n]*\n?)*)", text + "\n", re.MULTILINE
    )
    return match and match[0]


def test_docstrings_give_the_errors():
    """What a function raises itself, its Raises section names; what a class raises when it is made, the class's."""
    missing = []
    for name, value in objects().items():
        if not value.__doc__ and overrides(name):
            continue
        errors = raised_by(vars(value).get("__init__", value))
        section = entry_of("Raises", docstring_of(name)) or ""
        missing += [f"{name}: {error}" for error in errors if not re.search(rf"\b{error}\b", section)]
        if inspect.isclass(value) and "__call__" in vars(value):
            section = entry_of("Raises", inspect.getdoc(value.__call__) or "") or ""
            errors = raised_by(value.__call__)
            missing += [f"{name}.__call__: {error}" for error in errors if not re.search(rf"\b{error}\b", section)]
    assert missing == [], "\n".join(missing)


def raised_by(value) -> set[str]:
    """Names of the exceptions that it raises in its own body and does not catch there."""
    function = inspect.unwrap(value)
    if not inspect.isfunction(function) or not Path(function.__code__.co_filename).is_relative_to(hooks.SOURCE):
        return set()  # what a data class is given, say
    return raised_in(textwrap.dedent(inspect.getsource(function)))


def raised_in(source: str) -> set[str]:
    (definition,) = ast.parse(source).body
    found, left = set(), [(statement, frozenset()) for statement in definition.body]
    while left:
        node, caught = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            error = ast.unparse(node.exc.func).rpartition(".")[2]
            if error[0].isupper() and error not in caught | {"NotImplementedError"}:
                found.add(error)
        if isinstance(node, ast.Try):
            kinds = {kind.id for one in node.handlers for kind in ast.walk(one.type) if isinstance(kind, ast.Name)}
            left += [(statement, caught | kinds) for statement in node.body]
            left += [(one, caught) for one in (*node.handlers, *node.orelse, *node.finalbody)]
        else:
            left += [(child, caught) for child in ast.iter_child_nodes(node)]
    return found


def test_the_rule_finds_what_is_raised():
    source = """
        def f(x):
            def inner():
                raise KeyError("not of f itself")
            try:
                raise TypeError("caught")
            except (TypeError, OSError):
                raise errors.StrangeError(x) from None
            if x:
                raise ValueError("here")
            raise NotImplementedError("of a method to override")
    """
    assert raised_in(textwrap.dedent(source).strip()) == {"StrangeError", "ValueError"}
    assert raised_by(cli.check_model_source) == {"CommandError"}


def test_the_rule_finds_what_is_missing():
    """The rule itself, on a docstring with and without shapes."""
    text = "Does it.\n\nArgs:\n    boxes: of the model,\n        in pixels.\n    masks: `(B, H, W)`."
    assert not _SHAPE.search(entry_of("boxes", text)) and _SHAPE.search(entry_of("masks", text))
    assert entry_of("scores", text) is None
    for shape in ("(B, 4)", "(N,)", "(B, S / p, S / p)", "(T - 2,)", "(4 * N, D)", "()"):
        assert _SHAPE.fullmatch(shape), shape
    for prose in ("(see there)", "(optional)", "(in pixels of the picture)", "(0 to 1, say so)"):
        assert not _SHAPE.fullmatch(prose), prose


# Facts about the project ------------------------------------------------------------------------------------------
def test_the_citation_has_the_facts_of_the_manifest():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper, facts = citation["preferred-citation"], load_manifest().paper
    assert paper["title"] == facts["title"] and paper["year"] == facts["year"]
    assert [f"{person['given-names']} {person['family-names']}" for person in paper["authors"]] == facts["authors"]
    assert paper["repository-code"] == facts["code"]
    assert paper["identifiers"][0]["value"] == f"arXiv:{facts['arxiv']}"
    assert {"cff-version", "title", "message", "authors", "version", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"  # whose schema it was checked with
    assert str(citation["version"]) == oneref_hf.__version__
    assert all(
        author in (ROOT / "README.md").read_text(encoding="utf-8") for author in ("Xiao, Linhui", "Xu, Changsheng")
    )


def test_the_first_line_of_every_file_is_its_licence():
    """And then comes a docstring, which the reference shows."""
    for path in [*DOCS.rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "src").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(
            "# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.\n"
        )
        assert ast.get_docstring(ast.parse(text)), path
