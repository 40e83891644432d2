"""Runs attacks one after the other, and turns what they find into results.json's entries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from rmu_exp.attacks.api import BASE, Context, Finding, Outcome
from rmu_exp.config import parse, plugins
from rmu_exp.evaluation import statistics
from rmu_exp.evaluation.scoring import Answered
from rmu_exp.record.results import Accuracy, AttackEntry, BeforeAfter, Control, Intervals, Results
from rmu_exp.record.store import Store
from rmu_exp.support.boundary import full_disk, line_for
from rmu_exp.support.errors import RunError, explain, first_line
from rmu_exp.support.progress import attack_progress

log = logging.getLogger("rmu_exp")
SIGN_OF_LIFE = 0.05  # p against chance, of answers to what an attack was taught
Chosen = Mapping[str, dict[str, Any]]
"""Attack to its settings."""
ASK_NOTHING = frozenset({"norms"})
"""Attacks that find no answers, and can do without questions."""


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
    with attack_progress(len(chosen)) as show:
        for name, values in chosen.items():
            log.info("attack %s: %s", name, values)
            show(name, False)
            context.progress = lambda part, name=name: show(f"{name}, {part}", False)  # type: ignore[misc]
            began, context.journal = time.perf_counter(), store(f"attack-{name}", values, fingerprint)
            found = Finding()
            try:
                found = plugins.module("attacks", name).run(context, parse.plugin("attacks", name, values))
                made = entry(found, context.chance, lambda: _above(context.plain(BASE).scored.right, context.chance))
            except Exception as error:
                if explain(error, [full_disk]):
                    raise  # the next attack would find the disk no better
                log.exception("attack %s failed", name)
                line = str(line_for(error) or RunError(f"{type(error).__name__}: {first_line(error)}"))
                made, found = AttackEntry.model_validate({"error": line, "budget": {}}), Finding()
                log.warning("attack %s failed: %s", name, line)
            budget = made.budget | {"seconds": round(time.perf_counter() - began, 2)}
            made = made.model_copy(update={"settings": values, "fingerprint": fingerprint, "budget": budget})
            show(f"{name}: {_in_short(made)}, {budget['seconds']:.0f} s", True)
            top = {key: getattr(results, key) | value for key, value in found.top.items()}
            results = results.model_copy(update=top | {"attacks": results.attacks | {name: made}})
            yield results


def _in_short(made: AttackEntry) -> str:
    """What an attack found, in a few words."""
    if made.error is not None:
        return "failed"
    if made.inconclusive is not None:
        return "inconclusive"
    if made.forget_acc is None:
        return "measured"
    return f"{100 * made.forget_acc.before:.1f} → {100 * made.forget_acc.after:.1f} %"


def entry(found: Finding, chance: float, base_knows: Callable[[], bool] = lambda: True) -> AttackEntry:
    """An attack's entry in results.json; ``base_knows``: whether the base model answers the questions plainly."""
    made: dict[str, Any] = dict(found.more)
    n = 0
    if found.after is not None and found.before is not None:
        n = len(found.after.scored.right)
        if found.after.choice.right:
            made["chosen_by"] = measured(found.after.choice)
        if found.after.general.right:
            was, now = (statistics.summary(o.general.right) for o in (found.before, found.after))
            made["general"] = BeforeAfter(before=was.acc, after=now.acc)
    made["control"] = {name: _control(value, chance, n) for name, value in found.control.items()}
    if why := _shows_nothing(found, chance, made["control"].get(BASE), base_knows):
        made["inconclusive"] = why
    elif n and found.after is not None and found.before is not None:
        before, after = measured(found.before.scored), measured(found.after.scored)
        made |= {"before": before, "after": after, "n": n, "chance": chance}
        made["forget_acc"] = BeforeAfter(before=before.acc, after=after.acc)
        made["ci95"] = Intervals(before=before.ci95, after=after.ci95)
        made["p_chance"] = statistics.against_chance(found.after.scored.right, chance)
    made["curves"] = found.curves
    return AttackEntry.model_validate(made | {"budget": found.budget})


def measured(answers: Answered) -> Accuracy:
    """Answers as results.json has them."""
    return statistics.measured(answers.right, answers.corrected, answers.prob, answers.among)


def _shows_nothing(found: Finding, chance: float, base: object, base_knows: Callable[[], bool]) -> str | None:
    """Why an attack shows nothing; None: it does.

    It learned what it was taught. Where it brings nothing back, it leaves the base model the answers that it had.
    """
    if found.taught is not None and not _above(found.taught, chance):
        part = f"{sum(found.taught)} of {len(found.taught)} questions that it was taught are answered correctly"
        return f"did not learn: {part}, chance is {100 * chance:.0f} %"
    if found.idle is not None or found.after is None or not isinstance(base, Control):
        return found.idle
    lost = base.acc <= chance or (base.p_chance or 0.0) >= SIGN_OF_LIFE
    if base.corrected is not None and base.corrected.ci95[0] > chance:
        lost = False  # answers that only a bias hid
    if not lost or _above(found.after.scored.right, chance) or not base_knows():
        return None
    left = f"{round(base.acc * base.n)} of {base.n}"
    return f"leaves nothing to find: on the base model, which knows the answers, {left} are right after it"


def _above(correct: Sequence[int], chance: float) -> bool:
    """Whether answers are better than a blind guess beyond doubt."""
    return sum(correct) > chance * len(correct) and statistics.against_chance(correct, chance) < SIGN_OF_LIFE


def _control(value: Outcome | JsonValue, chance: float, n: int) -> Control | JsonValue:
    """The accuracy of answers to n questions, asked once or several times over; anything else as it is."""
    if not isinstance(value, Outcome):
        return value
    found = value.scored
    if n and len(found.right) > n and len(found.right) % n == 0:  # the same questions again are no more questions
        right = round(n * sum(found.right) / len(found.right))
        found = Answered([1] * right + [0] * (n - right))
    return Control(**dict(measured(found)), p_chance=statistics.against_chance(found.right, chance))
