"""A model repository on the hub: which version, which files, and only those that are needed.

Small files are downloaded when a checkpoint is located, weight files when they are opened. Everything lies
in the hub library's own cache, so that what ``rmu_exp fetch`` or other tools brought there is used, and works
without a network. This module knows nothing of what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmu_exp.model import weight_files
from rmu_exp.support import hub
from rmu_exp.support.errors import RunError, UserError

SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configuration and tokenizer
LEGAL = ("LICENSE", "NOTICE")
SHA256 = re.compile(r"[0-9a-f]{64}")


def belongs(name: str) -> bool:
    """Whether a file by this name is part of a checkpoint that is loaded without running foreign code or pickles."""
    return "/" not in name and (name.endswith((*SMALL, ".safetensors", ".py", ".md")) or name.startswith(LEGAL))


@dataclass(frozen=True)
class Snapshot:
    """One version of a repository."""

    repo: str  # ``org/name``
    commit: str
    folder: Path  # where the hub library's cache keeps it; holds what has been downloaded so far
    digests: dict[str, str]  # sha256 of the large files, by name, as the hub gives it

    def fetch(self, names: Sequence[str]) -> None:
        """Download those of the files that are not there yet. Raises as :func:`snapshot`."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        _download(self.repo, self.commit, missing, bars=True)
        for name in missing:
            self.check(self.folder / name)
            weight_files.header(self.folder / name)

    def check(self, file: Path) -> None:
        """Refuse what has not arrived as the hub has it: its client compares lengths only. Raises RunError."""
        expected = self.digests.get(file.name)
        if expected is not None and weight_files.file_digest(file) != expected:
            file.resolve().unlink()
            file.unlink(missing_ok=True)
            raise RunError(
                f"{self.repo}: {file.name} arrived damaged (its sha256 is not the hub's) and is not kept; run it again"
            )

    def digest(self, name: str) -> str | None:
        """sha256 of a weight file, without reading it where that is possible; None: it cannot be known here."""
        if name in self.digests:
            return self.digests[name]
        file = self.folder / name
        if not file.is_file():
            return None
        stored = file.resolve().name  # the cache names large files by their sha256
        return stored if SHA256.fullmatch(stored) else weight_files.file_digest(file)


def snapshot(repo: str, revision: str | None, remote_code: bool) -> Snapshot:
    """Find a version of a repository (None: the default branch) and download its small files.

    Raises:
        UserError: no such repository or revision, gated, a wrong token, no safetensors weights; switched
            off (``HF_HUB_OFFLINE=1``) and not in the cache.
        RunError: the hub cannot be reached, or a download broke off.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        folder = _download(repo, revision or _only_version(repo), [weight_files.CONFIG])
        return Snapshot(repo, folder.name, folder, {})
    hub.check(repo, "model", revision)  # one request without retries, that tells a gated repository from a missing one
    with hub.asking(repo, "model", revision):
        api = HfApi()
        commit = str(api.model_info(repo, revision=revision).sha)
        tree = api.list_repo_tree(repo, revision=commit, recursive=True)
        files = {f.path: f.lfs.sha256 if f.lfs else None for f in tree if isinstance(f, RepoFile)}
    if not {weight_files.SINGLE, weight_files.INDEX} & set(files):
        raise weight_files.no_safetensors(f"model.name: {repo}", files)
    if weight_files.CONFIG not in files:
        raise UserError(f"model.name: {repo} has no {weight_files.CONFIG}; give a model in Hugging Face's format")
    endings = (*SMALL, ".py") if remote_code else SMALL
    small = [n for n in files if "/" not in n and (n.endswith(endings) or n.startswith(LEGAL))]
    _download(repo, revision, [weight_files.CONFIG])  # by the name, whose commit the cache remembers then
    folder = _download(repo, commit, small)
    return Snapshot(repo, commit, folder, {name: digest for name, digest in files.items() if digest})


def _only_version(repo: str) -> str | None:
    """The commit of the default branch in the cache, where the hub's client does not see it; None: leave it to that.

    A cache that was filled by commit has no ``refs/main``, and one made by hand may have a line end in it.

    Raises UserError: several versions are there, and nothing says which.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    named = folder / "refs" / "main"
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    there = sorted(version.name for version in (folder / "snapshots").glob("*") if version.is_dir())
    if commit in there:
        return commit
    if len(there) > 1:
        raise UserError(
            f"model.name: {repo} is in the cache in {len(there)} versions, and refs/main names none of them; "
            f"add model.revision={there[0]} or another"
        )
    return there[0] if there else None


def _download(repo: str, revision: str | None, names: Sequence[str], bars: bool = False) -> Path:
    """Bring top-level files into the cache, if they are not there. Returns the folder of that version."""
    from huggingface_hub import constants, hf_hub_download

    hub.show_bars(bars)
    file = Path()
    with hub.asking(repo, "model", revision):
        for name in names:
            file = Path(hf_hub_download(repo, name, revision=revision, local_files_only=constants.HF_HUB_OFFLINE))
    return file.parent
