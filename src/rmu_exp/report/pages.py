"""Docs with numbers in them: what stands between two markers is made from a result file beside them.

    <!-- results: NAME VIEW train.kl_budget=0.01 … -->
    <!-- end -->

NAME is ``results/NAME.json`` beside the page, VIEW one of :data:`VIEWS`; further words choose runs by a setting in
which they differ, or by method, model or seed. ``python -m rmu_exp.report.pages docs`` makes all of them again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from matplotlib.figure import Figure

from rmu_exp.record import result_file
from rmu_exp.record.result_file import ResultFile
from rmu_exp.record.results import Results
from rmu_exp.report import methods, style, tables
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic

MARKED = re.compile(r"(<!-- results: (\S+) (\S+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
Drawn = dict[Path, tuple[Figure, str]]
"""Image to its figure, and what is drawn in it as text."""


def _one(runs: Sequence[Results], view: str) -> Results:
    if len(runs) > 1:
        raise UserError(f"{view} shows one run, and there are {len(runs)}; choose by a setting such as seed=0")
    return runs[0]


def _questions(runs: Sequence[Results]) -> str:
    return tables.accuracies(_one(runs, "questions").qa).markdown()


def _attacked(runs: Sequence[Results]) -> str:
    return tables.attacks(_one(runs, "attacked")).markdown()


def _methods(runs: Sequence[Results]) -> str:
    return f"{methods.ABOUT}\n\n{methods.table(methods.rows(runs)).markdown()}"


def _attacks(runs: Sequence[Results]) -> str:
    return methods.attacked(runs).markdown()


TABLES: Mapping[str, Callable[[Sequence[Results]], str]] = {
    "questions": _questions,
    "attacked": _attacked,
    "methods": _methods,
    "attacks": _attacks,
}
FIGURES = {"front": methods.WORST, "forget": "forget"}  # what is drawn against general accuracy
VIEWS = (*TABLES, *FIGURES)


def rendered(page: Path) -> tuple[str, Drawn]:
    """A page with everything between its markers made again, and its figures.

    Raises UserError: a marker names a view that there is not, a file that is missing or damaged, or no run of it.
    """
    drawn: Drawn = {}

    def between(found: re.Match[str]) -> str:
        start, name, view, chosen, end = found.groups()
        file = page.parent / "results" / f"{name}.json"
        wanted = dict(word.split("=", 1) for word in chosen.split())
        try:
            content = _chosen(result_file.read(file), wanted)
            if view in TABLES:
                body = TABLES[view](content.runs)
            elif view in FIGURES:
                image = page.parent / "img" / f"{'_'.join(['results', name, view, *wanted.values()])}.png"
                listed = methods.rows(content.runs)
                drawn[image] = methods.draw(listed, FIGURES[view]), methods.table(listed).markdown()
                body = f"![{view}](img/{image.name})"
            else:
                raise UserError(f"got {view!r}, allowed is {', '.join(VIEWS)}")
        except UserError as error:
            raise UserError(f"{page}: results: {name} {view}{chosen}: {error}") from error
        return f"{start}\n{body}\n\n{_origin(content, name)}\n\n{end}"

    return MARKED.sub(between, page.read_text(encoding="utf-8")), drawn


def _chosen(content: ResultFile, wanted: Mapping[str, str]) -> ResultFile:
    runs = [r for r in content.runs if all(_values(r).get(key) == value for key, value in wanted.items())]
    if not runs:
        raise UserError(f"none of its {len(content.runs)} runs has {', '.join('='.join(w) for w in wanted.items())}")
    return ResultFile(runs, content.failed)


def _values(results: Results) -> dict[str, str]:
    """What runs are chosen by."""
    run, origin = results.run, results.provenance
    budget = results.train.kl_budget if results.train else None
    own = {"method": run.method, "model": run.model, "seed": run.seed, "train.kl_budget": budget}
    return {key: str(value) for key, value in (own | (origin.config if origin else {})).items()}


def _origin(content: ResultFile, name: str) -> str:
    """Where the numbers come from, and what a reader must know, as a list."""
    origins = [r.provenance for r in content.runs if r.provenance]
    commits = {f"{o.git.commit[:7]}{' with changes' * o.git.dirty}" if o.git else "unknown" for o in origins}
    runs = f"{len(content.runs)} run{'s' * (len(content.runs) > 1)}"
    told = "; ".join(f"`{command}`" for command in joined(o.command for o in origins))
    lines = [f"{runs} in `results/{name}.json`, commit {', '.join(sorted(commits))}: {told}"]
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


def digest(text: str) -> str:
    """What an image's description says of what is drawn in it."""
    return sha256(text.encode()).hexdigest()


def main(folder: Path) -> None:
    """Make everything between markers in the pages of a folder again."""
    for page in sorted(folder.glob("*.md")):
        text, drawn = rendered(page)
        for image, (figure, shown) in drawn.items():
            style.write(figure, image, digest(shown))
        if text != page.read_text(encoding="utf-8"):
            write_atomic(page, text)
            print(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
