"""Bring a checkpoint or a Delta from the model hub into a folder.

A checkpoint is for judge.py, chat and every tool that reads Hugging Face's format; a Delta for apply, with its base.
The folder appears when it is whole. After an interruption the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from rmu_exp.cli.apply import REPO
from rmu_exp.model import weight_files
from rmu_exp.model.delta import Delta
from rmu_exp.model.hub_snapshot import Snapshot, belongs
from rmu_exp.record import rundir
from rmu_exp.support import hub, program
from rmu_exp.support.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("repo", metavar="ORG/NAME[@REVISION]", help="what push sent, or another checkpoint")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write; must not exist")


def run(args: argparse.Namespace) -> int:
    """Bring a checkpoint or a Delta from the hub."""
    folder, given = args.folder, REPO.fullmatch(args.repo)
    if given is None:
        raise UserError(f"{args.repo}: not a name on the hub, allowed is ORG/NAME[@REVISION]")
    if folder.exists():
        raise UserError(f"pull: {folder} exists already; choose another folder or move it away")
    found = _download(given["name"], given["revision"], folder.with_name(f".{folder.name}-partial"))
    if (found.folder / rundir.DELTA).is_file():
        base = Delta.load(found.folder / rundir.DELTA).base
        name = base.get("name") or "BASE"
        name = "BASE" if Path(name).is_absolute() else f"{name}@{base['revision']}" if base.get("revision") else name
        then = f"{program.command('apply')} {shlex.quote(name)} {folder} OUT writes the checkpoint"
    else:
        weight_files.check_folder(found.folder, "pull")
        then = f"{program.command('judge')} … unlearned={folder} evaluates it"
    found.folder.rename(folder)
    print(f"{folder}: {args.repo} at commit {found.commit}; {then}")
    return 0


def _download(repo: str, revision: str | None, folder: Path) -> Snapshot:
    """Download what belongs to a checkpoint or a Delta, and check it against the hub's digests."""
    with hub.asking(repo, "model", revision):
        from huggingface_hub import HfApi, snapshot_download

        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {f.rfilename: f.lfs.sha256 if f.lfs else None for f in info.siblings or [] if belongs(f.rfilename)}
        if rundir.DELTA not in files and not {weight_files.SINGLE, weight_files.INDEX} & set(files):
            raise UserError(f"{repo}: holds neither {rundir.DELTA} nor a checkpoint in safetensors; check the name")
        found = Snapshot(repo, str(info.sha), folder, {name: digest for name, digest in files.items() if digest})
        hub.show_bars(True)
        snapshot_download(repo, revision=found.commit, local_dir=folder, allow_patterns=list(files))
    shutil.rmtree(folder / ".cache")  # the client's notes for going on
    for name in found.digests:
        found.check(folder / name)
    return found
