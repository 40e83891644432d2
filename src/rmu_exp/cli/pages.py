"""Docs with numbers in them: what stands between two markers is made from a result file beside them.

    <!-- results: NAME VIEW train.kl_budget=0.01 … -->
    <!-- end -->

NAME is ``results/NAME.json`` in the folder of the docs, VIEW one of :data:`VIEWS`, or several with commas; further
words choose runs by a setting in which they differ, or by method, model or seed. ``python -m rmu_exp.cli.pages docs
README.md`` makes all of them again.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from rmu_exp.record import result_file
from rmu_exp.record.differing import settings_of, shown
from rmu_exp.record.result_file import ResultFile
from rmu_exp.record.results import Results
from rmu_exp.report import methods, plots, style, tables, verdict
from rmu_exp.report.objectives import standing_for
from rmu_exp.report.table import Table, numbers
from rmu_exp.settings import ROLES
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import report, trials

MARKED = re.compile(
    r"^(<!-- results: (\S+) (\S+)((?: \S+=\S+)*) -->)\n(?:(?!^<!-- ).*\n)*?(<!-- end -->)$", re.MULTILINE
)
MARKER = re.compile(r"^<!--\s*(?:results|end)\b.*$", re.MULTILINE)


def _one(runs: Sequence[Results], view: str) -> Results:
    if len(runs) > 1:
        raise UserError(f"{view} shows one run, and there are {len(runs)}; choose by a setting such as seed=0")
    return runs[0]


def _questions(runs: Sequence[Results]) -> str:
    return tables.accuracies(_one(runs, "questions").qa).markdown()


def _attacked(runs: Sequence[Results]) -> str:
    return tables.attacks(_one(runs, "attacked")).markdown()


def _methods(runs: Sequence[Results]) -> str:
    return f"{methods.about(runs)}\n\n{methods.table(methods.rows(runs)).markdown()}"


def _attacks(runs: Sequence[Results]) -> str:
    return methods.attacked(runs).markdown()


def _screen(runs: Sequence[Results]) -> str:
    """The accuracies of one run as the terminal shows them."""
    run, out = _one(runs, "screen"), io.StringIO()
    Console(file=out, width=80, force_terminal=False, color_system=None).print(
        tables.on_screen(run.qa).rich(tables.title(run.run))
    )
    return "\n".join(["```", *(line.rstrip() for line in out.getvalue().splitlines()), "```"])


def _kept(runs: Sequence[Results]) -> str:
    """What each run keeps of what the base model knew, plain / corrected, and how far its activations went."""
    asked = {name: row for run in runs[::-1] for name, row in run.qa.items()}
    groups = [(role, name) for role in ROLES for name in standing_for(role, asked)]
    tasks = [task for role, name in groups for task in (role == "forget" and asked[name].tasks) or [name]]
    families = {f"{task.partition('_')[0]}_" for task in tasks}
    prefix = families.pop() if len(families) == 1 else ""
    columns = [f"{task.removeprefix(prefix)} ({asked[task].base.n})" for task in tasks]
    body = []
    for trial in trials.of(runs):
        run = trial.results
        assert run is not None
        parts = [verdict.kept(run.qa[task]) if task in run.qa else None for task in tasks]
        cells = [" / ".join(f"{value:.2f}" for value in part if value is not None) if part else "" for part in parts]
        reached = ", ".join(f"{100 * part:.0f}" for part in run.train.reached.values()) if run.train else ""
        kl = run.damage.kl.get("neutral") if run.damage else None
        far, far_off = f"{reached} %" if reached else "", f"{kl.mean:.3f}" if kl else ""
        body.append([trial.name.replace(",", ", "), *cells, far, far_off, run.verdict.word if run.verdict else ""])
    return Table(["settings", *numbers(*columns, "reached", "KL"), "verdict"], body).markdown()


TABLES: Mapping[str, Callable[[Sequence[Results]], str]] = {
    "screen": _screen,
    "questions": _questions,
    "attacked": _attacked,
    "methods": _methods,
    "attacks": _attacks,
    "kept": _kept,
}


def _accuracy(content: ResultFile) -> Figure:
    run = _one(content.runs, "accuracy")
    return plots.accuracy(run.qa, tables.title(run.run))


def _norms(content: ResultFile) -> Figure:
    run = _one(content.runs, "norms")
    delta = run.provenance.delta_digest if run.provenance else None
    figure = plots.norms(run.run, content.norms.get(delta or "", []))
    if figure is None:
        raise UserError("it has no norms; write it with rmu-exp results --norms")
    return figure


def _lasting(content: ResultFile) -> Figure:
    figure = methods.lasting(methods.rows(content.runs))
    if figure is None:
        raise UserError("its runs were not attacked")
    return figure


def _swept(kind: str) -> Callable[[ResultFile], Figure]:
    def drawn(content: ResultFile) -> Figure:
        listed = trials.of(content.runs)
        found = [figure for name, figure in report.figures(listed).items() if name.partition("-")[0] == kind]
        if len(found) != 1:
            keys = ", ".join(trials.swept(listed)) or "nothing"
            raise UserError(f"sweep_{kind} is for runs that differ in two settings, and these differ in {keys}")
        return found[0]

    return drawn


FIGURES: Mapping[str, Callable[[ResultFile], Figure]] = {
    "accuracy": _accuracy,
    "norms": _norms,
    "lasting": _lasting,
    "sweep_front": _swept("front"),
    "sweep_map": _swept("map"),
}
VIEWS = (*TABLES, *FIGURES)


def rendered(page: Path, docs: Path | None = None) -> tuple[str, dict[Path, Figure]]:
    """A page with everything between its markers made again, and its figures.

    Args:
        docs: the folder with ``results/`` and ``img/``; None: the page's own.

    Raises UserError: a marker is not understood, or names a view that there is not, a file that is missing or damaged,
    or no run of it.
    """
    drawn: dict[Path, Figure] = {}
    text = page.read_text(encoding="utf-8")
    understood = {place for found in MARKED.finditer(text) for place in (found.start(), found.start(5))}
    if lost := next((found for found in MARKER.finditer(text) if found.start() not in understood), None):
        raise UserError(f"{page}: {lost[0]}: got no <!-- results: NAME VIEW KEY=VALUE --> with its <!-- end --> below")
    docs = docs or page.parent

    def between(found: re.Match[str]) -> str:
        start, name, views, chosen, end = found.groups()
        file = docs / "results" / f"{name}.json"
        wanted = dict(word.split("=", 1) for word in chosen.split())
        try:
            content, parts = _chosen(result_file.read(file), wanted), []
            for view in views.split(","):
                if view in TABLES:
                    parts.append(TABLES[view](content.runs))
                elif view in FIGURES:
                    words = ".".join([name, view, *chosen.split()]).replace("/", "_")
                    image = docs / "img" / f"{words}.png"
                    drawn[image] = FIGURES[view](content)
                    parts.append(f"![{view.replace('_', ' ')}]({image.relative_to(page.parent).as_posix()})")
                else:
                    raise UserError(f"got {view!r}, allowed is {', '.join(VIEWS)}")
        except UserError as error:
            raise UserError(f"{page}: results: {name} {views}{chosen}: {error}") from error
        parts.append(_origin(content, file.relative_to(page.parent).as_posix()))
        return "\n\n".join([start, *parts, end])

    return MARKED.sub(between, text), drawn


def _chosen(content: ResultFile, wanted: Mapping[str, str]) -> ResultFile:
    runs = [r for r in content.runs if all(_shown(r).get(key) == value for key, value in wanted.items())]
    if not runs:
        raise UserError(f"none of its {len(content.runs)} runs has {', '.join('='.join(w) for w in wanted.items())}")
    return replace(content, runs=runs)


def _shown(results: Results) -> dict[str, str]:
    """What runs are chosen by."""
    return {key: shown(value) for key, value in settings_of(results).items()}


def _origin(content: ResultFile, file: str) -> str:
    """Where the numbers come from, and what a reader must know, as a list."""
    origins = [r.provenance for r in content.runs if r.provenance]
    commits = {f"{o.git.commit[:7]}{' with changes' * o.git.dirty}" if o.git else "unknown" for o in origins}
    runs = f"{len(content.runs)} run{'s' * (len(content.runs) > 1)}"
    told = "; ".join(f"`{command}`" for command in joined(o.command for o in origins))
    lines = [f"{runs} in `{file}`, commit {', '.join(sorted(commits))}: {told}"]
    lines += methods.notes(content.runs)
    lines += [f"{trial} has no results: {why}" for trial, why in content.failed.items()]
    return "\n".join(f"- {line}" for line in lines)


def joined(commands: Iterable[str]) -> list[str]:
    """Commands; those that differ in the value of one setting are one command, as a sweep over it is written."""
    found: list[list[str]] = []
    for words in (command.split() for command in sorted(set(commands))):
        for known in found:
            others = [i for i, (a, b) in enumerate(zip(known, words, strict=False)) if a != b]
            if len(known) == len(words) and len(others) == 1 and _key(known[others[0]]) == _key(words[others[0]]) != "":
                values = ",".join(w[others[0]].partition("=")[2] for w in (known, words)).split(",")
                known[others[0]] = f"{_key(words[others[0]])}={','.join(dict.fromkeys(values))}"
                break
        else:
            found.append(words)
    return [" ".join(words) for words in found]


def _key(word: str) -> str:
    """The key of a setting whose value is one word; nothing of any other."""
    key, equals, value = word.partition("=")
    return key if equals and not set(value) & set("[]{}'\"") else ""


def digest(figure: Figure) -> str:
    """What an image's description says of what is drawn: titles, labels, texts, lines, points, cells."""
    parts: list[object] = [figure.get_suptitle()]
    for axes in figure.axes:
        parts += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        parts += [label.get_text() for side in (axes.xaxis, axes.yaxis) for label in side.get_ticklabels()]
        parts += [(line.get_label(), line.get_xydata()) for line in axes.lines]
        parts += [image.get_array() for image in axes.images]
        parts += [(some.get_label(), some.get_offsets(), some.get_array()) for some in axes.collections]
    with np.printoptions(precision=6, threshold=sys.maxsize):
        return sha256("\n".join(map(str, parts)).encode()).hexdigest()


def main(docs: Path, *more: Path) -> None:
    """Make everything between markers in the pages of a folder, and in other pages, again."""
    for page in (*sorted(docs.glob("*.md")), *more):
        text, drawn = rendered(page, docs)
        for image, figure in drawn.items():
            style.write(figure, image, digest(figure))
        if text != page.read_text(encoding="utf-8"):
            write_atomic(page, text)
            print(page)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"rmu_exp: {error}")
