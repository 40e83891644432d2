"""Carries out attacks one after the other, and turns what they find into results.json's entries."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from rmu_exp.attacks.api import Context, Finding
from rmu_exp.config import parse, plugins
from rmu_exp.evaluate import statistics
from rmu_exp.record.store import Store
from rmu_exp.support import disk
from rmu_exp.support.boundary import line_for
from rmu_exp.support.errors import RunError, explain, first_line

log = logging.getLogger("rmu_exp")


def missing(chosen: dict[str, dict[str, Any]], results: dict[str, Any], of: str) -> dict[str, dict[str, Any]]:
    """The attacks whose result is not there yet, or was found with other settings or on something else, or failed.

    Args:
        of: what is attacked and asked, as :func:`carry_out` notes it.
    """
    known = results.get("attacks", {})
    return {
        name: settings
        for name, settings in chosen.items()
        if known.get(name, {}).get("settings") != settings or known[name].get("of") != of or "error" in known[name]
    }


def carry_out(
    context: Context,
    chosen: dict[str, dict[str, Any]],
    of: str = "",
    journal: Callable[..., Store] = lambda *of: Store(),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the attacks.

    Args:
        of: a digest of the models, texts and questions.
        journal: what an attack with some settings has done so far of its parts.

    Yields:
        An attack's name, and what belongs into results.json because of it: ``attacks.<name>`` and, from probes,
        keys beside it. One that fails is told in its entry and leaves the others alone.
    """
    for name, values in chosen.items():
        log.info("attack %s: %s", name, values)
        began, context.journal = time.perf_counter(), journal(f"attack-{name}", values, of)
        try:
            found = plugins.module("attacks", name).run(context, parse.plugin("attacks", name, values))
            result = found.top | {"attacks": {name: {"settings": values, "of": of} | entry(found, context.chance)}}
        except Exception as error:
            if explain(error, [disk.explain]):
                raise  # the next attack would find the disk no better
            log.exception("attack %s failed", name)
            line = str(line_for(error) or RunError(f"{type(error).__name__}: {first_line(error)}"))
            result = {"attacks": {name: {"settings": values, "of": of, "error": line}}}
            log.warning("attack %s failed: %s", name, line)
        result["attacks"][name].setdefault("budget", {})["seconds"] = round(time.perf_counter() - began, 2)
        yield name, result


def entry(found: Finding, chance: float) -> dict[str, Any]:
    """An attack's entry in results.json."""
    made: dict[str, Any] = {}
    if found.after is not None and found.before is not None:
        before, after = statistics.summary(found.before), statistics.summary(found.after)
        made["forget_acc"] = {"before": before["acc"], "after": after["acc"]}
        made["ci95"] = {"before": before["ci95"], "after": after["ci95"]}
        made |= {"n": after["n"], "chance": chance, "p_chance": statistics.against_chance(found.after, chance)}
    made["control"] = {
        name: statistics.summary(value) | {"p_chance": statistics.against_chance(value, chance)}
        if _answers(value)
        else value
        for name, value in found.control.items()
    }
    made["budget"] = found.budget
    made |= found.more
    if found.curves:
        made["curves"] = {name: dataclasses.asdict(curve) for name, curve in found.curves.items()}
    return made


def _answers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(v in (0, 1) for v in value)


def merge(results: dict[str, Any], found: dict[str, Any]) -> None:
    """Put one attack's part into results.json's content."""
    for key, value in found.items():
        results[key] = results.get(key, {}) | value
