"""What surrounds a run: ``python -m rmu_exp fetch | apply | export | table | sweep | verify | compare | dashboard``.

Runs are started by train.py.

Nothing heavy is imported before the command is known: Hugging Face's libraries fix the places of their caches
when they are imported, and ``fetch`` says where those are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rmu_exp.errors import RunError, UserError
from rmu_exp.secrets import redact

if TYPE_CHECKING:
    from rmu_exp.model.checkpoint import Checkpoint
    from rmu_exp.model.delta import Delta

_REPO = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^@]+))?")

AXES = "what to compare by: forget, general, worst (the accuracy after the worst attack)"


def main(words: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status: 0 done, 1 it failed, 2 the input is wrong."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # advice to users of other programs; read on import
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        args = _parser().parse_args(words)
        return int(args.run(args) or 0)
    except (UserError, RunError, OSError) as error:
        from rmu_exp import disk

        if line := disk.told(error, Path()):
            return _tell(line, 1)
        if isinstance(error, OSError):
            raise
        return _tell(error, 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        return _tell("interrupted; nothing partial is kept as whole, run it again", 1)


def _tell(message: object, status: int) -> int:
    print(redact(f"rmu_exp: {message}"), file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help explains")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rmu_exp", description="What surrounds a run; runs are started by train.py.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "fetch",
        help="bring all that a run needs from the hub into a folder",
        description="Bring all that a run needs from the hub (model, tokenizer, corpora, questions) into a folder that "
        "a machine without a network runs from. Name the run as for train.py, or what is wanted one by one.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="made when missing; what it holds is not fetched again")
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py: model=zephyr_7b data=wmdp …")
    one.add_argument("--model", action="append", default=[], metavar="ORG/NAME[@REVISION]", help="a model; repeatable")
    one.add_argument("--corpus", action="append", default=[], metavar="SOURCE", help="ORG/NAME[:CONFIG[:SPLIT]]")
    one.add_argument("--task", action="append", default=[], metavar="TASK", help="an lm-eval task or group")
    one.add_argument("--layers", type=int, metavar="N", help="only the weight files that hold the first N layers")
    one.set_defaults(run=fetch)

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

    one = commands.add_parser(
        "table",
        help="the paper's table: methods compared over the runs in a folder",
        description="Write methods.md (a table, seeds together) and methods.png (forget against general) from the runs "
        "below a folder, such as that of train.py -m experiment=paper_table.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="a folder of runs")
    one.set_defaults(run=table)

    one = commands.add_parser(
        "sweep",
        help="the report of a sweep, or of any folder of runs",
        description="Write report.md, plots/ and report.html over the trials in a folder, as a sweep does at its end.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder, or one that holds runs' folders")
    one.add_argument("--objectives", nargs="+", default=["forget", "general"], metavar="AXIS", help=AXES)
    one.add_argument("--forget", nargs="+", metavar="TASK", help="what is to be forgotten; found by name if not given")
    one.add_argument("--general", nargs="+", metavar="TASK", help="what is to be kept; found by name if not given")
    one.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help="send tables and plots to this W&B project too")
    one.set_defaults(run=sweep)

    one = commands.add_parser(
        "verify",
        help="recompute what a run's folder says",
        description="Recompute what can be of a run's or a judgement's folder (settings, hashes of data and weights, "
        "numbers from answers), and say line by line what agrees, differs, or cannot be checked here. Changes nothing.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="the folder of a run or a judgement")
    one.add_argument("--answers", action="store_true", help="put the questions again, to base and base with Delta")
    one.add_argument("--training", action="store_true", help="train again, and compare the Delta byte for byte")
    one.set_defaults(run=verify)

    one = commands.add_parser(
        "compare",
        help="two runs side by side",
        description="What differs between two runs or judgements: settings, versions, hardware, answers (McNemar's "
        "test on the questions that both were asked), tensors, worst attack.",
    )
    one.add_argument("first", type=Path, metavar="DIR1", help="the folder of a run or a judgement")
    one.add_argument("second", type=Path, metavar="DIR2", help="another")
    one.add_argument("--json", action="store_true", help="as JSON, in place of tables")
    one.set_defaults(run=compare)

    one = commands.add_parser(
        "dashboard",
        help="create or update a W&B workspace and report for a project",
        description="Save a W&B workspace and a report with the panels of this work: forget against general, accuracy "
        "over layer and steer, activation norms, losses, attacks, tables. The next call updates both.",
    )
    one.add_argument("project", metavar="ENTITY/PROJECT", help="a W&B project that runs were tracked in")
    one.add_argument("--forget", default="lore_forget", metavar="TASK", help="the questions to be forgotten")
    one.add_argument("--general", default="lore_general", metavar="TASK", help="the questions to be kept")
    one.add_argument("--topics", nargs="+", default=["hexes", "wards"], metavar="TOPIC", help="the forget topics")
    one.add_argument("--attacks", nargs="+", default=[], metavar="ATTACK", help="the attacks to show")
    one.set_defaults(run=dashboard)
    return parser


def table(args: argparse.Namespace) -> None:
    """The paper's table over a folder of runs."""
    from rmu_exp.report import methods

    page, picture = methods.write(args.folder)
    print(page.read_text(encoding="utf-8"), end="")
    print(f"{page}, {picture}")


def fetch(args: argparse.Namespace) -> None:
    """Bring what a run needs into a folder, and say how to use it."""
    given = args.model or args.corpus or args.task
    if given and args.overrides:
        raise UserError("fetch: give KEY=VALUE as for train.py, or --model, --corpus and --task, not both")
    if given:
        if args.layers is not None and args.layers < 1:
            raise UserError(f"--layers: got {args.layers}, allowed is 1 or more")
        named = {"models": args.model, "corpora": args.corpus, "tasks": args.task, "depth": args.layers}
        command = "python train.py …"
    else:
        if args.layers is not None:
            raise UserError("--layers: belongs to --model; a run says itself how many layers it needs")
        named, command = _needs(args.overrides)
    from rmu_exp.fetch import fetch as bring

    was_there = args.folder.exists()
    try:
        for line in bring(args.folder, **named):
            print(line, flush=True)
    except (UserError, RunError):
        if not was_there:
            _remove_if_empty(args.folder)
        raise
    folder = shlex.quote(str(args.folder.absolute()))
    print(f"\nOn a machine without a network:\n  HF_HOME={folder} HF_HUB_OFFLINE=1 {command}")


def _needs(overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What the run (or the sweep) of these overrides takes from the hub, and the command that starts it."""
    conf = Path(__file__).parents[2] / "conf"
    if not conf.is_dir():
        raise UserError("conf: not beside the package; install from a checkout, or use --model, --corpus and --task")
    from rmu_exp import cli
    from rmu_exp.corpora import texts

    runs = cli.check([*overrides, f"output='{tempfile.gettempdir()}'"], conf, multirun=True)
    models, sources, tasks = [], [], []
    for run in runs:
        if run.model.path is None and run.model.name not in (None, "lore"):
            models.append(run.model.name + (f"@{run.model.revision}" if run.model.revision else ""))
        sources += [*run.data.forget, *run.data.retain]
        tasks += [task for task in run.eval.tasks if not task.startswith("lore_")]
    corpora = [source for source in dict.fromkeys(sources) if texts.dataset(source) is not None]
    if not (models or corpora or tasks):
        raise UserError("fetch: this run needs nothing from the hub; name one that does, such as model=zephyr_7b")
    whole = any(run.eval.tasks or run.export for run in runs)
    needs: dict[str, Any] = {
        "models": models,
        "corpora": corpora,
        "tasks": list(dict.fromkeys(tasks)),
        "depth": None if whole else max(run.layer for run in runs) + 1,
        "trust_remote_code": any(run.model.trust_remote_code for run in runs),
    }
    return needs, shlex.join(["python", "train.py", *["-m"] * (len(runs) > 1), *overrides])


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
        from rmu_exp import rundir
        from rmu_exp.model.checkpoint import locate

        model = rundir.settings(config).get("model")
        if not isinstance(model, dict):
            raise UserError(f"{config}: damaged (no model in it); give the base as --base")
        given = [model.get(key) for key in ("name", "path", "revision")]
        if not all(value is None or isinstance(value, str) for value in given):
            raise UserError(f"{config}: damaged (no model's name in it); give the base as --base")
        revision = delta.base.get("revision") or given[2]
        checkpoint = locate(given[0], given[1], revision, model.get("trust_remote_code") is True)
    _write(checkpoint, delta, args.folder, args.out)


def sweep(args: argparse.Namespace) -> None:
    """The report of a sweep."""
    from rmu_exp.sweep.report import write

    tracking = None
    if args.wandb is not None:
        entity, _, project = args.wandb.rpartition("/")
        tracking = {"kind": "wandb", "project": project, "entity": entity or None, "mode": "auto", "group": None}
    asked = {"forget": args.forget or [], "general": args.general or []}
    write(args.folder, args.objectives, asked, tracking)


def verify(args: argparse.Namespace) -> int:
    """Whether a run's folder still says what was measured. Returns 1 when something differs."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from rmu_exp.verify import DIFFERS, verify

    states = []
    for check in verify(args.folder, args.answers, args.training):
        states.append(check.state)
        print(redact(f"{check.state:<9}  {check.what}: {check.detail}"), flush=True)
    told = {state: states.count(state) for state in dict.fromkeys(states)}
    print("; ".join(f"{count} {state}" for state, count in told.items()))
    return int(DIFFERS in states)


def compare(args: argparse.Namespace) -> None:
    """Two runs side by side."""
    from rmu_exp import compare

    found = compare.compare(args.first, args.second)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        compare.show(found)


def dashboard(args: argparse.Namespace) -> None:
    """A W&B workspace and report."""
    from rmu_exp.tracking.dashboards import Shown, publish

    entity, _, project = args.project.rpartition("/")
    if not entity or not project or "/" in entity:
        raise UserError(f"dashboard: got {args.project!r}, allowed is ENTITY/PROJECT")
    for kind, url in publish(Shown(entity, project, args.forget, args.general, args.topics, args.attacks)).items():
        print(f"{kind}: {url}")


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


def _results(file: Path, delta: Delta) -> dict[str, Any]:
    """What the run measured, when its results.json lies there; otherwise what the Delta itself tells."""
    if file.is_file():
        from rmu_exp import results as results_json

        results = results_json.load(file)
        if set(results["run"].get("trained_parameters", [])) == set(delta.tensors):
            return results
    names = list(delta.tensors)
    about = {"model_revision": delta.base.get("revision"), "model_digest": delta.base.get("digest", "")}
    return {
        "run": {"model": delta.base.get("name", ""), "topics": delta.topics, "trained_parameters": names},
        "provenance": about,
    }


def _remove_if_empty(folder: Path) -> None:
    """Leave no new folder behind in which there is no file."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
