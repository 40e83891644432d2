"""Fetch all that a run needs from the hub into one folder, for a machine without a network.

Name the run as for train.py, or the models, corpora and tasks one by one. The folder is a Hugging Face home: there,
HF_HOME=DIR HF_HUB_OFFLINE=1 python train.py … finds everything. It can be copied (rsync -a or tar, which keep links).
Files are whole or absent, and a second call brings what is missing. No token is written to it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import get_method

from rmu_exp.cli.compose import composed
from rmu_exp.cli.entry import CONF
from rmu_exp.settings import Run
from rmu_exp.support import program
from rmu_exp.support.errors import RunError, UserError

CACHES = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets"}


def fetch(
    folder: Path,
    *,
    models: Sequence[str] = (),
    corpora: Sequence[str] = (),
    tasks: Sequence[str] = (),
    depth: int | None = None,
    trust_remote_code: bool = False,
    include_path: Sequence[str] = (),
) -> Iterator[str]:
    """Bring models, corpora and question sets into ``folder``, where they are not yet; yields one line for each.

    Must run before anything imports huggingface_hub or datasets, which fix the place of their caches then.

    Args:
        models: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        corpora: sources as in ``data.forget`` and ``data.retain``; those that are no hub datasets are passed over.
        tasks: lm-eval tasks or groups.
        depth: only the weight files of the embedding and the first so many layers; None: all.
        trust_remote_code: also bring the Python code that comes with a model.
        include_path: folders with YAML files of tasks.

    Raises:
        UserError: no such repository or task, or no access to it.
        RunError: the hub cannot be reached, a download broke off, or lm-eval cannot load its questions.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    with caches_in(folder):
        from rmu_exp.data import sources
        from rmu_exp.model.checkpoint import locate

        for name in dict.fromkeys(models):
            repo, _, revision = name.partition("@")
            checkpoint = locate(repo, None, revision or None, trust_remote_code)
            checkpoint.fetch(depth)
            whole = depth is None or checkpoint.hub is None  # what is quantised is needed whole
            layers = "all layers" if whole else f"its first {depth} layers"
            yield f"model {name}: {layers}, at commit {checkpoint.revision}"
        for source in dict.fromkeys(corpora):
            if sources.dataset(source) is not None:
                yield f"corpus {sources.read(source, on_bad_line='skip').describe()}"
        if tasks:
            from rmu_exp.evaluation.catalogue import find, loading

            with loading(tasks):  # lm-eval fetches its own; those of groups are counted one by one
                found = len(find(tasks, include_path).load(list(tasks))["tasks"])
            yield f"questions of {', '.join(tasks)}: {found} tasks"


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Inside the block Hugging Face's libraries, if they are not imported yet, take a folder for their caches.

    What says what a run needs may import them, so it belongs into such a block, too. HF_HOME stays as it is: the
    token is read from there.
    """
    before = dict(os.environ)
    os.environ |= {key: str(folder.absolute() / name) for key, name in CACHES.items()}
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(switch, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="made when missing; completed when not")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py: model=zephyr_7b data=wmdp")
    parser.add_argument("--model", action="append", default=[], metavar="ORG/NAME[@REVISION]", help="repeatable")
    parser.add_argument("--corpus", action="append", default=[], metavar="SOURCE", help="ORG/NAME[:CONFIG[:SPLIT]]")
    parser.add_argument("--task", action="append", default=[], metavar="TASK", help="an lm-eval task or group")
    parser.add_argument("--layers", type=int, metavar="N", help="only the weight files that hold the first N layers")


def run(args: argparse.Namespace) -> int:
    """Fetch what a run needs into a folder, and print how to use it."""
    if args.model or args.corpus or args.task:
        if args.overrides:
            raise UserError("fetch: give KEY=VALUE as for train.py, or --model, --corpus and --task, not both")
        if args.layers is not None and args.layers < 1:
            raise UserError(f"--layers: got {args.layers}, allowed is 1 or more")
        wanted = {"models": args.model, "corpora": args.corpus, "tasks": args.task, "depth": args.layers}
        command = f"{program.command('train')} …"
    elif args.layers is not None:
        raise UserError("--layers: belongs to --model; a run says itself how many layers it needs")
    else:
        wanted, command = _needs(args.overrides, args.folder)
    was_there = args.folder.exists()
    try:
        for line in fetch(args.folder, **wanted):
            print(line, flush=True)
    except (UserError, RunError):
        if not was_there and not any(path.is_file() for path in args.folder.rglob("*")):
            shutil.rmtree(args.folder, ignore_errors=True)
        raise
    folder = shlex.quote(str(args.folder.absolute()))
    print(f"\nOn a machine without a network:\n  HF_HOME={folder} HF_HUB_OFFLINE=1 {command}")
    return 0


def _needs(overrides: Sequence[str], folder: Path) -> tuple[dict[str, Any], str]:
    """What the run (or the sweep) of these overrides takes from the hub, and the command that starts it."""
    with caches_in(folder):  # methods and attacks import Hugging Face's libraries
        runs = [run for run in composed(overrides, CONF, multirun=True) if isinstance(run, Run)]
        found = get_method("rmu_exp.pipeline.needs.of")(runs)
    if not (found.models or found.corpora or found.tasks):
        raise UserError("fetch: this run needs nothing from the hub; name one that does, such as model=zephyr_7b")
    return vars(found), f"{program.command('train')} {shlex.join([*['-m'] * (len(runs) > 1), *overrides])}"
