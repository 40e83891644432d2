"""``apply`` and ``export``: full Hugging Face checkpoints from a base and a Delta."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmu_exp.record import results as results_json
from rmu_exp.record.results import Provenance, Results, RunInfo
from rmu_exp.settings import Model
from rmu_exp.support.errors import UserError

if TYPE_CHECKING:
    from rmu_exp.model.checkpoint import Checkpoint
    from rmu_exp.model.delta import Delta

_REPO = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^@]+))?")


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "apply",
        help="a full checkpoint from a base and a Delta",
        description="Write a full Hugging Face checkpoint: the base with the Delta's tensors in it.",
    )
    one.add_argument("base", metavar="BASE", help="the base checkpoint: a folder, ORG/NAME[@REVISION], or lore")
    one.add_argument("delta", type=Path, metavar="DELTA", help="a run's delta.safetensors, or the run's folder")
    one.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    one.set_defaults(run=apply)

    one = commands.add_parser(
        "export",
        help="the full checkpoint of a run",
        description="Write the full Hugging Face checkpoint of a run that was made without export=true.",
    )
    one.add_argument("folder", type=Path, metavar="RUN_DIR", help="a run's folder")
    one.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    one.add_argument("--base", metavar="BASE", help="where the base is now, when it is not where the run found it")
    one.set_defaults(run=export)


def apply(args: argparse.Namespace) -> None:
    """A full checkpoint from a base and a Delta."""
    file = args.delta / "delta.safetensors" if args.delta.is_dir() else args.delta
    delta = _delta(file)
    _write(_base(args.base, delta), delta, file.parent, args.out)


def export(args: argparse.Namespace) -> None:
    """The full checkpoint of a run."""
    config = args.folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{args.folder}: no config.yaml in it; give the folder of a run")
    delta = _delta(args.folder / "delta.safetensors")
    if args.base is not None:
        checkpoint = _base(args.base, delta)
    else:
        from rmu_exp.model.checkpoint import locate
        from rmu_exp.record import rundir

        model = rundir.of(config).part("model", Model)
        revision = delta.base.get("revision") or model.revision
        checkpoint = locate(model.name, model.path, revision, model.trust_remote_code)
    _write(checkpoint, delta, args.folder, args.out)


def _delta(file: Path) -> Delta:
    from rmu_exp.model.delta import Delta

    return Delta.load(file)


def _base(given: str, delta: Delta) -> Checkpoint:
    """The base checkpoint; from the hub at the commit that the Delta was made for, if no revision is given."""
    from rmu_exp.model.checkpoint import locate

    repo = _REPO.fullmatch(given)
    if given == "lore":
        return locate(given)
    if repo is None or Path(given).exists() or given.startswith("."):
        return locate(None, given)
    own = delta.base.get("revision") if delta.base.get("name") == repo["name"] else None
    return locate(repo["name"], None, repo["revision"] or own or None)


def _write(checkpoint: Checkpoint, delta: Delta, run: Path, out: Path) -> None:
    from rmu_exp.model.export import export as write
    from rmu_exp.report.card import card

    write(checkpoint, delta, out, card(_results(run / "results.json", delta)))
    print(f"{out}: the full checkpoint, for AutoModelForCausalLM.from_pretrained, lm_eval and vLLM")


def _results(file: Path, delta: Delta) -> Results:
    """What the run measured, when its results.json lies there; otherwise what the Delta itself tells."""
    if file.is_file():
        results = results_json.load(file)
        if set(results.run.trained_parameters) == set(delta.tensors):
            return results
    base = delta.base
    run = RunInfo(kind="delta", model=base.get("name", ""), topics=delta.topics, trained_parameters=list(delta.tensors))
    origin = Provenance(config_hash="", versions={}, command="", model_digest=base.get("digest", ""))
    origin.model_revision = base.get("revision")
    return Results(run=run, provenance=origin)
