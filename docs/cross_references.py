# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Docstrings refer to other objects as Transformers' do, [`Name`] or [`~module.name`]; here these become links."""

import re
from collections.abc import Iterator

import griffe


_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
# "name ([`Type`], *optional*):" begins an entry; what is in its parentheses is shown as code already.
_ENTRY = re.compile(r"^ *[\w*, ]+ \((.*)\):")


class CrossReferences(griffe.Extension):
    """Looks the names up among all public objects of the package; what is not among them stays code."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Called when the package has been read, before anything is rendered."""
        objects = list(_objects(pkg))
        paths: dict[str, str] = {}
        for entry in objects:
            names = entry.path.split(".")
            for start in range(1, len(names)):
                paths.setdefault(".".join(names[start:]), entry.path)
            paths[entry.path] = entry.path

        def link(match: re.Match) -> str:
            shortened, name = match.groups()
            path = paths.get(name)
            label = f"`{name.rpartition('.')[2] if shortened else name}`"
            return label if path is None else f"[{label}][{path}]"

        def linked(line: str) -> str:
            beginning = _ENTRY.match(line)
            end = beginning.end() if beginning else 0
            return _REFERENCE.sub(r"\2", line[:end]) + _REFERENCE.sub(link, line[end:])

        for entry in objects:
            if entry.docstring is not None:
                entry.docstring.value = "\n".join(map(linked, entry.docstring.value.split("\n")))


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """Whatever gets a heading: public, with a docstring, and not imported from elsewhere."""
    for name, member in parent.members.items():
        if member.is_alias or name.startswith("_"):
            continue
        if member.docstring is not None or member.is_module:
            yield member
        if member.is_module or member.is_class:
            yield from _objects(member)
