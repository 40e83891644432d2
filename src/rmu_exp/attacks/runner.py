"""Runs attacks one after the other, and turns what they find into results.json's entries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from rmu_exp.attacks.api import Context, Finding
from rmu_exp.config import parse, plugins
from rmu_exp.evaluate import statistics
from rmu_exp.record.results import AttackEntry, BeforeAfter, Control, Intervals, Results
from rmu_exp.record.store import Store
from rmu_exp.support.boundary import full_disk, line_for
from rmu_exp.support.errors import RunError, explain, first_line

log = logging.getLogger("rmu_exp")
Chosen = Mapping[str, dict[str, Any]]
"""Attack to its settings."""


def missing(chosen: Chosen, results: Results, fingerprint: str) -> dict[str, dict[str, Any]]:
    """The attacks whose result is not there yet, or was found with other settings or on something else, or failed.

    Args:
        fingerprint: of what is attacked and asked, as :func:`run_attacks` notes it.
    """

    def done(name: str, settings: dict[str, Any]) -> bool:
        entry = results.attacks.get(name)
        return entry is not None and (entry.settings, entry.fingerprint, entry.error) == (settings, fingerprint, None)

    return {name: settings for name, settings in chosen.items() if not done(name, settings)}


def run_attacks(
    context: Context,
    chosen: Chosen,
    results: Results,
    fingerprint: str = "",
    store: Callable[..., Store] = lambda *parts: Store(),
) -> Iterator[Results]:
    """Run the attacks; gives the results after each. One that fails says so in its entry and leaves the others alone.

    Args:
        fingerprint: of the models, texts and questions.
        store: the parts of an attack with some settings that are done.
    """
    for name, values in chosen.items():
        log.info("attack %s: %s", name, values)
        began, context.journal = time.perf_counter(), store(f"attack-{name}", values, fingerprint)
        found = Finding()
        try:
            found = plugins.module("attacks", name).run(context, parse.plugin("attacks", name, values))
            made = entry(found, context.chance)
        except Exception as error:
            if explain(error, [full_disk]):
                raise  # the next attack would find the disk no better
            log.exception("attack %s failed", name)
            line = str(line_for(error) or RunError(f"{type(error).__name__}: {first_line(error)}"))
            made, found = AttackEntry.model_validate({"error": line, "budget": {}}), Finding()
            log.warning("attack %s failed: %s", name, line)
        budget = made.budget | {"seconds": round(time.perf_counter() - began, 2)}
        made = made.model_copy(update={"settings": values, "fingerprint": fingerprint, "budget": budget})
        top = {key: getattr(results, key) | value for key, value in found.top.items()}
        results = results.model_copy(update=top | {"attacks": results.attacks | {name: made}})
        yield results


def entry(found: Finding, chance: float) -> AttackEntry:
    """An attack's entry in results.json."""
    made: dict[str, Any] = dict(found.more)
    if found.after is not None and found.before is not None:
        before, after = statistics.summary(found.before), statistics.summary(found.after)
        made["forget_acc"] = BeforeAfter(before=before.acc, after=after.acc)
        made["ci95"] = Intervals(before=before.ci95, after=after.ci95)
        made |= {"n": after.n, "chance": chance, "p_chance": statistics.against_chance(found.after, chance)}
    made["control"] = {name: _control(value, chance) for name, value in found.control.items()}
    made["curves"] = found.curves
    return AttackEntry.model_validate(made | {"budget": found.budget})


def _control(value: JsonValue, chance: float) -> Control | JsonValue:
    """The accuracy of answers; anything else as it is."""
    answers = [v for v in value if isinstance(v, int) and v in (0, 1)] if isinstance(value, list) else []
    if not answers or answers != value:
        return value
    return Control(**dict(statistics.summary(answers)), p_chance=statistics.against_chance(answers, chance))
