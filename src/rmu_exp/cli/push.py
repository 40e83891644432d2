"""Send the checkpoint of a run, or its Delta, to the model hub.

The checkpoint where the run has one (export=true); otherwise, or with --delta, the Delta and results.json. A model card
with the results goes with it, in one commit: all of it arrives, or nothing. The token is that of `hf auth login`, or
HF_TOKEN.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rmu_exp.cli.apply import REPO, results_of
from rmu_exp.model import weight_files
from rmu_exp.model.delta import Delta
from rmu_exp.model.hub_snapshot import belongs
from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.report.card import README, card
from rmu_exp.support import hub
from rmu_exp.support.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (".safetensors", ".gguf", *weight_files.PICKLED)


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, or what export, apply or pull wrote")
    parser.add_argument("repo", metavar="ORG/NAME", help="the repository; made when it is not there")
    parser.add_argument("--private", action="store_true", help="make it one that only its owners see")
    parser.add_argument("--delta", action="store_true", help="the Delta, also where there is a checkpoint")


def run(args: argparse.Namespace) -> int:
    """Send a checkpoint or a Delta to the hub."""
    folder, repo = args.folder, args.repo
    if (name := REPO.fullmatch(repo)) is None or name["revision"]:
        raise UserError(f"{repo}: not a name on the hub, allowed is ORG/NAME")
    places = [] if args.delta else [folder / rundir.MODEL, folder]
    exported = next((place for place in places if (place / weight_files.CONFIG).is_file()), None)
    if exported is None and not (folder / rundir.DELTA).is_file():
        wanted = rundir.DELTA if args.delta else f"{rundir.DELTA} or checkpoint"
        raise UserError(f"{folder}: no {wanted} in it; give a run's folder")
    if exported is not None:
        weight_files.check_folder(exported, "push")
    with hub.sending(repo):
        from huggingface_hub import CommitOperationAdd, HfApi, constants

        api = HfApi()
        names = [rundir.DELTA] if exported is None else [file.name for file in exported.iterdir()]
        there = _there(api, repo, args.private, names)
        files = _delta(folder) if exported is None else _checkpoint(exported, folder)
        if not there:
            api.create_repo(repo, private=args.private)
        sent = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        size = sum(operation.upload_info.size for operation in sent)
        hub.show_bars(True)
        print(f"sending {', '.join(sorted(files))} ({size / 1e6:,.1f} MB)", flush=True)
        commit = api.create_commit(repo, sent, commit_message="Unlearned by rmu_exp")
        what = "the Delta" if exported is None else "the checkpoint"
        print(f"{constants.ENDPOINT}/{repo}: {what}, at commit {commit.oid}")
    return 0


def _there(api: HfApi, repo: str, private: bool, names: list[str]) -> bool:
    """Whether the repository exists. Raises UserError: it is not fit to take the files of these names."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return False
    if private and not info.private:
        raise UserError(f"{repo}: is there already, and public; make it private on its page, or choose another name")
    held = (file.rfilename for file in info.siblings or [])
    if other := next((name for name in held if name.endswith(WEIGHTS) and name not in names), None):
        raise UserError(f"{repo}: holds {other}, which is no part of this; choose another name, or delete it there")
    return True


def _checkpoint(exported: Path, folder: Path) -> dict[str, str | bytes]:
    """The files of an export; its card rendered again where the run's results are."""
    files: dict[str, str | bytes] = {p.name: str(p) for p in exported.iterdir() if p.is_file() and belongs(p.name)}
    if (folder / results_json.NAME).is_file() and exported != folder:
        files[README] = card(results_json.load(folder / results_json.NAME)).encode()
    return files


def _delta(folder: Path) -> dict[str, str | bytes]:
    """The Delta, its run's results where they are its own, and a card."""
    results = results_of(folder, Delta.load(folder / rundir.DELTA))
    files: dict[str, str | bytes] = {rundir.DELTA: str(folder / rundir.DELTA)}
    if results.run.kind != "delta":
        files[results_json.NAME] = str(folder / results_json.NAME)
    return files | {README: card(results, delta=True).encode()}
