"""The table of accuracies: the order of its rows, and the table on the screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table

ORDER = ("forget", "wmdp", "adjacent", "general", "mmlu")


def rows(qa: dict[str, Any]) -> list[tuple[int, str]]:
    """Names of groups and tasks in reading order, each with its depth: 0 for a group, 1 for a task of it.

    A task that is in several groups stands in the smallest; one that was not asked in none.
    """
    groups = sorted((n for n in qa if "tasks" in qa[n]), key=lambda n: len(qa[n]["tasks"]))
    home = {task: group for group in reversed(groups) for task in qa[group]["tasks"]}
    order = sorted(groups, key=lambda n: ("_open" in n, _rank(n), -len(qa[n]["tasks"])))
    listed: list[tuple[int, str]] = []
    for group in order:
        listed += [(0, group), *((1, task) for task in qa[group]["tasks"] if task in qa and home[task] == group)]
    return listed + [(0, name) for name in qa if name not in groups and name not in home]


def _rank(name: str) -> int:
    return next((i for i, word in enumerate(ORDER) if word in name), len(ORDER))


def percent(value: float) -> str:
    """0.2632 as ``26.3 %``."""
    return f"{100 * value:.1f} %"


def interval(summary: dict[str, Any]) -> str:
    """The 95 % interval as ``21.7–31.5``, in percent."""
    low, high = summary["ci95"]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def qa_table(results: dict[str, Any]) -> Table:
    """The final table for the terminal, 80 columns wide with names up to 26 characters."""
    run, qa = results["run"], results["qa"]
    table = Table(
        title=title(run), title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("questions", no_wrap=True)
    for name in ("base", "unlearned", "95 %", "change", "chance", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for depth, name in rows(qa):
        if depth and "_open" in name:
            continue  # the report has them
        row = qa[name]
        base, after = row.get("base"), row.get("unlearned")
        n = (after or base)["n"]
        change = f"{100 * (after['acc'] - base['acc']):+.1f}" if base and after else ""
        table.add_row(
            "  " * depth + name,
            percent(base["acc"]) if base else "",
            percent(after["acc"]) if after else "",
            interval(after) if after else "",
            change,
            percent(row["chance"]),
            str(n),
            style="" if depth == 0 else "dim",
        )
    return table


def title(run: dict[str, Any]) -> str:
    """The setting in words, for titles."""
    if "method" not in run:
        return f"{run['unlearned']} beside {run['model']}, seed {run['seed']}"
    steer = " and ".join(dict.fromkeys(f"{c:g}" for c in run["steer"]))
    alpha = " and ".join(dict.fromkeys(f"{a:g}" for a in run["alpha"]))
    return f"{run['method']} on {run['model']}: layer {run['layer']}, steer {steer}, alpha {alpha}, seed {run['seed']}"
