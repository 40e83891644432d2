"""The table of accuracies: the order of its rows, and the table on the screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table

ORDER = ("forget", "wmdp", "adjacent", "general", "mmlu")


def rows(qa: dict[str, Any]) -> list[tuple[int, str]]:
    """Names of groups and tasks in reading order, each with its depth: 0 for a group, 1 for a task of it."""
    groups = [name for name in qa if any(other.startswith(name + "_") for other in qa)]
    groups.sort(key=lambda name: ("_open" in name, _rank(name), len(name)))
    listed: list[tuple[int, str]] = []
    for group in groups:
        listed.append((0, group))
        listed += [(1, n) for n in qa if n.startswith(group + "_") and n not in groups]
    known = {name for _, name in listed}
    return listed + [(0, name) for name in qa if name not in known]


def _rank(name: str) -> int:
    return next((i for i, word in enumerate(ORDER) if word in name), len(ORDER))


def percent(value: float) -> str:
    """0.2632 as ``26.3 %``."""
    return f"{100 * value:.1f} %"


def interval(summary: dict[str, Any]) -> str:
    """The 95 % interval as ``21.7 to 31.5``, in percent."""
    low, high = summary["ci95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def qa_table(results: dict[str, Any]) -> Table:
    """The final table for the terminal; at most 100 columns wide."""
    run, qa = results["run"], results["qa"]
    table = Table(
        title=title(run), title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("questions", no_wrap=True)
    for name in ("base", "unlearned", "95 %", "change", "chance", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for depth, name in rows(qa):
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
    steer = " and ".join(dict.fromkeys(f"{c:g}" for c in run["steer"]))
    alpha = " and ".join(dict.fromkeys(f"{a:g}" for a in run["alpha"]))
    return f"{run['method']} on {run['model']}: layer {run['layer']}, steer {steer}, alpha {alpha}, seed {run['seed']}"
