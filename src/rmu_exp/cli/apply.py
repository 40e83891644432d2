"""Write a full checkpoint from a base and a Delta.

A Hugging Face checkpoint: the base with the Delta's tensors in it, and a model card.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rmu_exp import worlds
from rmu_exp.model import gguf
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export
from rmu_exp.record import results as results_json
from rmu_exp.record.results import Provenance, Results, RunInfo
from rmu_exp.record.rundir import DELTA
from rmu_exp.report.card import card

REPO = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^@]+))?")


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("base", metavar="BASE", help="the base: a folder, ORG/NAME[@REVISION], or a shipped model")
    parser.add_argument("delta", type=Path, metavar="DELTA", help="a run's delta.safetensors, or the run's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")


def run(args: argparse.Namespace) -> int:
    """Write a full checkpoint from a base and a Delta."""
    file = args.delta / DELTA if args.delta.is_dir() else args.delta
    delta = Delta.load(file)
    write(base_of(args.base, delta), delta, file.parent, args.out)
    return 0


def base_of(given: str, delta: Delta) -> Checkpoint:
    """The base checkpoint; from the hub at the commit that the Delta was made for, if no revision is given."""
    repo = REPO.fullmatch(given)
    if given in gguf.PACKAGES or worlds.checkpoint(given) is not None:
        return locate(given)
    if repo is None or Path(given).exists() or given.startswith("."):
        return locate(None, given)
    own = delta.base.get("revision") if delta.base.get("name") == repo["name"] else None
    return locate(repo["name"], None, repo["revision"] or own or None)


def write(checkpoint: Checkpoint, delta: Delta, run_folder: Path, out: Path) -> None:
    """Write the full checkpoint, with a model card over what the run measured."""
    export(checkpoint, delta, out, card(results_of(run_folder, delta)))
    print(f"{out}: the full checkpoint, for AutoModelForCausalLM.from_pretrained, lm_eval and vLLM")


def results_of(run_folder: Path, delta: Delta) -> Results:
    """What the run measured, when its results.json lies there; otherwise what the Delta itself says."""
    if (file := run_folder / results_json.NAME).is_file():
        results = results_json.load(file)
        if set(results.run.trained_parameters) == set(delta.tensors):
            return results
    base = delta.base
    run = RunInfo(kind="delta", model=base.get("name", ""), topics=delta.topics, trained_parameters=list(delta.tensors))
    origin = Provenance(config_hash="", versions={}, command="", model_digest=base.get("digest", ""))
    origin.model_revision = base.get("revision")
    return Results(run=run, provenance=origin)
