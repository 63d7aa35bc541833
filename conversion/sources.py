# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Finds the file that a CHECKPOINT argument means, downloading it where needed.

best_checkpoint.pth                      a file
release.zip::unc/best_checkpoint.pth     a member of a zip archive
hf://OWNER/NAME/FILE[::MEMBER]           a file of a Hub repository (`hf://OWNER/NAME@REVISION/FILE` pins it)
rec-base-refcoco                         a released model, by the name of its card in model_cards
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoint_reader import list_members
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from manifest import ManifestError, ModelRow, load_manifest


class SourceError(ValueError):
    """A checkpoint that cannot be found or fetched; the message lists what was tried."""


@dataclass(frozen=True)
class Source:
    """A file on this machine, and where it came from."""

    path: Path
    member: str | None = None
    given: str = ""  # what the user asked for
    repo: str | None = None  # Hub repository, where it came from one
    hub_file: str | None = None
    revision: str | None = None  # commit of the repository
    row: ModelRow | None = None  # the released model that it is, where it is one

    @property
    def checksum(self) -> str | None:
        """SHA-256 of the file, where the Hub has given it: the cache names large files by it."""
        name = self.path.resolve().name if self.repo is not None else ""
        return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def resolve(checkpoint: str) -> Source:
    """The source that a CHECKPOINT argument means; see the module's docstring for the forms.

    Raises:
        SourceError: no such file, Hub file or released model, or the download failed.
    """
    if Path(checkpoint).is_file():
        return Source(Path(checkpoint), given=checkpoint)
    place, separator, member = checkpoint.rpartition("::")
    if not separator:
        place, member = checkpoint, None
    if place.startswith("hf://"):
        return _from_hub_address(place, member, checkpoint)
    if Path(place).is_file():
        return Source(Path(place), member, given=checkpoint)
    if separator or "/" in checkpoint or Path(checkpoint).suffix:
        raise SourceError(f"There is no file '{place}'.")
    return released(checkpoint)


def released(name: str) -> Source:
    """The source of a released model."""
    row = released_row(name)
    source = _download(row.repos, row.hub_files, member=row.member, given=name)
    return replace(source, row=row, member=_actual_member(source.path, row.member))


def _actual_member(path: Path, member: str | None) -> str | None:
    """The member of the archive that the manifest means. Its paths are what the original's scripts expect, so the
    folder of the dataset counts, wherever in the archive it lies; the reader refuses what is still not there."""
    members = list_members(path) or []
    if member is None or member in members:
        return member
    folder = member.split("/")[0]
    found = [name for name in members if folder in name.split("/")[:-1]]
    return found[0] if len(found) == 1 else member


def released_row(name: str) -> ModelRow:
    """The manifest's row of a released model."""
    try:
        return load_manifest().model(name)
    except ManifestError as error:
        raise SourceError(f"'{name}' is neither a file nor a released model: {error}") from error


def released_tokenizer() -> Path:
    """The SentencePiece model that every released checkpoint shares, downloaded."""
    manifest = load_manifest()
    return _download(manifest.repos, [manifest.tokenizer], given=manifest.tokenizer).path


def _from_hub_address(address: str, member: str | None, given: str) -> Source:
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if match is None:
        raise SourceError(f"'{address}' is not of the form hf://OWNER/NAME/FILE.")
    repo, revision, file = match.groups()
    manifest = load_manifest()
    if repo not in manifest.repos:
        return _download([repo], plus_variants(file), revision=revision, member=member, given=given)
    repos = [repo, *(other for other in manifest.repos if other != repo)]  # the release moved from one to the other
    source = _download(repos, plus_variants(file), revision=revision, member=member, given=given)
    rows = [row for row in manifest if source.hub_file in row.hub_files and row.member in (member, None)]
    return replace(source, row=rows[0] if len(rows) == 1 else None)


def plus_variants(file: str) -> list[str]:
    """Names under which a file may be stored: some uploads percent-encoded the plus sign of `unc+` into the name."""
    return list(dict.fromkeys([file, file.replace("+", "%2B"), file.replace("%2B", "+")]))


def _download(
    repos: Sequence[str],
    files: Sequence[str],
    *,
    given: str,
    revision: str | None = None,
    member: str | None = None,
) -> Source:
    """The first of the files that exists in the first of the repositories that has one, from the Hub or its cache."""
    tried, reasons = [], set()
    for repo in repos:
        for file in files:
            tried.append(f"{repo}/{file}")
            try:
                path = Path(hf_hub_download(repo, file, revision=revision))
            except LocalEntryNotFoundError as error:  # nothing in the cache and no connection
                raise SourceError(
                    f"'{given}' is not in the cache and the Hub cannot be reached: {_line(error)}"
                ) from error
            except GatedRepoError:
                reasons.add("a repository asks for permission first; log in with `hf auth login`")
                break
            except RepositoryNotFoundError:
                reasons.add("a repository does not exist or is private")
                break
            except RevisionNotFoundError:
                reasons.add(f"there is no revision {revision!r}")
                break
            except EntryNotFoundError:
                reasons.add("the file is not there")
                continue
            except HFValidationError as error:
                raise SourceError(f"'{given}' does not name a Hub repository: {_line(error)}") from error
            except Exception as error:  # the HTTP library's own errors differ between versions of huggingface_hub
                raise SourceError(f"Downloading '{repo}/{file}' failed: {_line(error)}") from error
            return Source(path, member, given, repo, file, revision=_commit_of(path))
    raise SourceError(f"'{given}' was not found ({'; '.join(sorted(reasons))}); tried {', '.join(tried)}.")


def _commit_of(path: Path) -> str | None:
    """The commit in a path of the Hub cache, `.../snapshots/COMMIT/FILE`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
