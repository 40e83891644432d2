"""report.md: a run for a person, section by section; a stage that did not run has no section."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmu_exp.record import results as results_json
from rmu_exp.report import attacks, published
from rmu_exp.report.card import perplexity_table
from rmu_exp.report.tables import interval, percent, rows, title
from rmu_exp.support.files import write_atomic

Section = Callable[[dict[str, Any]], list[str]]


def write_report(folder: Path) -> Path:
    """Write report.md from results.json and the plots that are there."""
    results = results_json.load(folder / results_json.NAME)
    plots = sorted((folder / "plots").glob("*.png"))
    found = attacks.figures(results)
    blocks = [section(results) for section in SECTIONS]
    blocks.insert(
        3, [f"![{name}](plots/{name}.png)\n" for name in found if (folder / "plots" / f"{name}.png").is_file()]
    )
    blocks.insert(2, [f"![{p.stem}](plots/{p.name})\n" for p in plots if p.stem not in found])
    path = folder / "report.md"
    write_atomic(path, "\n".join(line for block in blocks if block for line in [*block, ""]))
    return path


def headline(results: dict[str, Any]) -> list[str]:
    """What happened, in one sentence."""
    lines = [f"# {title(results['run'])}"]
    qa = results.get("qa", {})
    told = [
        f"{name} {percent(row['base']['acc'])} → {percent(row['unlearned']['acc'])}"
        for depth, name in rows(qa)
        if depth == 0 and "unlearned" in (row := qa[name])
    ]
    if told:
        lines += ["", f"**{'; '.join(told)}** (answered right, before → after)."]
    if worst := attacks.sentence(results):
        lines += ["", worst]
    return lines


def questions(results: dict[str, Any]) -> list[str]:
    """The table of accuracies with intervals and tests."""
    if "qa" not in results:
        return []
    lines = [
        "## Questions",
        "",
        "| questions | n | base | 95 % | unlearned | 95 % | lost / gained | p, no change | chance | p, at chance |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for depth, name in rows(results["qa"]):
        row = results["qa"][name]
        base, after, test = row["base"], row.get("unlearned"), row.get("mcnemar")
        cells = [("&nbsp;&nbsp;" * depth) + name, str(base["n"]), percent(base["acc"]), interval(base)]
        cells += [percent(after["acc"]), interval(after)] if after else ["", ""]
        cells += [f"{test['lost']} / {test['gained']}", f"{test['p']:.2g}"] if test else ["", ""]
        cells += [percent(row["chance"]), f"{row['p_chance']:.2g}" if "p_chance" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Intervals are Wilson's. Base and unlearned answered the same questions: *lost* were right before and wrong",
        "after, *gained* the reverse, and their p is McNemar's exact test. The last p is the exact binomial test of",
        "the unlearned accuracy against chance.",
    ]
    return lines


def utility(results: dict[str, Any]) -> list[str]:
    """Perplexity on held-out text."""
    table = perplexity_table(results)
    return ["## Perplexity", "", *table] if table else []


def training(results: dict[str, Any]) -> list[str]:
    """What was trained and what it cost."""
    run, train = results["run"], results.get("train")
    if not run.get("trained_parameters"):
        return []
    lines = ["## Training", "", "Trained tensors:", ""] + [f"- `{name}`" for name in run["trained_parameters"]]
    if train:
        lines += [
            "",
            f"{train['steps']} steps in {train['seconds']:.1f} s with loading "
            f"({1000 * train['seconds_per_step']:.1f} ms a step), "
            f"peak memory {train['peak_memory_bytes'] / 2**20:,.0f} MiB.",
        ]
    return lines


def origin(results: dict[str, Any]) -> list[str]:
    """Versions, hashes, and the command that repeats the run."""
    source = results.get("provenance")
    if not source:
        return []
    git = source.get("git")
    commit = f"commit `{git['commit'][:12]}`" + (" with changes" if git["dirty"] else "") if git else "no git checkout"
    versions = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    hashes = [f"- {name}: `{digest[:16]}…`" for name, digest in source.get("data_hashes", {}).items()]
    return [
        "## Where it comes from",
        "",
        f"    {source['command']}",
        "",
        f"{commit}; {versions}; settings `{source['config_hash'][:16]}…`; weights `{source['model_digest'][:23]}…`.",
        "",
        *hashes,
    ]


SECTIONS: tuple[Section, ...] = (headline, questions, attacks.section, published.section, utility, training, origin)
