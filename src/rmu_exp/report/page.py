"""report.html: report.md as one page that needs no network, with the figures and all that both models wrote in it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.report import markdown, observed
from rmu_exp.report.table import Table
from rmu_exp.support.files import write_atomic


def write_reports(folder: Path) -> None:
    """Write report.html and then report.md, from results.json and the other files of a run."""
    results = results_json.load(folder / results_json.NAME)
    figures = sorted(file.stem for file in (folder / "plots").glob("*.png"))
    answers, written = rundir.whole_lines(folder / rundir.ANSWERS), observed.written(folder)
    report = markdown.text(results, figures, answers, written)
    write_atomic(folder / rundir.PAGE, page(report, folder, observed.samples(written, len(written))))
    write_atomic(folder / rundir.REPORT, report)


def page(report: str, folder: Path, written: Table) -> str:
    """The page.

    Args:
        report: report.md's text; its figures are read from ``folder``. What is HTML in it is shown as text.
        written: every prompt with what both models wrote; it is folded up.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.add_render_rule("image", _image)
    tokens = reader.parse(report)
    sections: list[tuple[str, str]] = []
    title = ""
    for token, inside in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            token.attrSet("id", name := f"s{len(sections)}")
            sections.append((name, inside.content))
        elif token.type == "heading_open" and token.tag == "h1":
            title = inside.content
    body = reader.renderer.render(tokens, reader.options, {"folder": folder})
    samples = reader.render(written.markdown()) if written else ""
    return markdown.render("page.html.jinja", title=title, sections=sections, body=body, samples=samples)


def _image(_: object, tokens: Sequence[Token], index: int, __: object, env: dict[str, Any]) -> str:
    """A figure of the run, in the page itself; nothing for a picture that lies elsewhere."""
    file, name = env["folder"] / str(tokens[index].attrs["src"]), tokens[index].content
    if file.parent != env["folder"] / "plots" or not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'
