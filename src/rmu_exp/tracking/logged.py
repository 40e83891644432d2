"""What is tracked of a run, by the names that panels, columns and sweeps know it by; whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rmu_exp.record import rundir
from rmu_exp.record.results import Qa, Results, RippleLevel

Line = Mapping[str, object]
NOTHING: Line = MappingProxyType({})


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """Settings as columns can sort and filter them.

    One value for all topics is a number, different ones are named by topic.
    """
    data = config.get("data")
    topics = data.get("topics") or [] if isinstance(data, Mapping) else []
    found = dict(config)
    for key in ("steer", "alpha"):
        values = config.get(key)
        if isinstance(values, list) and values:
            each = {str(topic): value for topic, value in zip(topics, values, strict=False)}
            found[key] = values[0] if len(set(values)) == 1 else each or values
    return found


def of_step(metrics: Line) -> dict[str, object]:
    """A step's metrics by the names of panels."""
    topic = metrics.get("topic", "all")
    named: dict[str, object] = {}
    for key, value in metrics.items():
        kind, _, rest = key.partition("_")
        if kind in ("norm", "cos"):
            named[f"{kind.replace('cos', 'cosine')}/{topic}/{rest}"] = value
        elif key not in ("step", "topic", "steer", "alpha"):
            named[f"train/{key}"] = value
    forget, retain = metrics.get("cos_forget"), metrics.get("cos_retain")
    if isinstance(forget, float) and isinstance(retain, float):
        named["score"] = retain - forget
    return named


def summary(results: Results) -> dict[str, object]:
    """Numbers to sort, filter and plot runs by: a run's settings (a judgement has none), accuracies, attacks."""
    run, numbers = results.run, dict[str, object]()
    if run.layer is not None:
        numbers["setting/layer"] = run.layer
    for key, values in (("steer", run.steer), ("alpha", run.alpha)):
        if len(set(values)) == 1:
            numbers[f"setting/{key}"] = values[0]
        else:  # a list is what no panel can draw, and a mean would be a setting that nobody ran
            numbers |= {f"setting/{key}/{topic}": value for topic, value in zip(run.topics, values, strict=False)}
    for name, row in results.qa.items():
        for state in ("base", "unlearned"):
            if found := row.of(state):
                numbers[f"qa/{name}/{state}"] = found.acc
                if found.corrected:
                    numbers[f"qa/{name}/{state}_corrected"] = found.corrected.acc
    if results.damage:
        for kind, kl in results.damage.kl.items():
            numbers |= {f"damage/kl/{kind}": kl.mean, f"damage/agreement/{kind}": results.damage.agreement[kind].mean}
        for source, both in results.damage.perplexity.items():
            numbers |= {f"damage/perplexity/{source}/{state}": value for state, value in both}
    for role, pair in results.samples.items():
        for who, rates in (("base", pair.base), ("unlearned", pair.unlearned)):
            shares = {"empty": rates.empty, "refusal": rates.refusal, "match": rates.match}
            numbers |= {f"samples/{role}/{key}/{who}": rate.mean for key, rate in shares.items() if rate}
            numbers |= {f"samples/{role}/repeat/{who}": rates.repeat, f"samples/{role}/nll/{who}": rates.nll}
    if results.verdict:
        numbers["verdict"] = results.verdict.word
    if results.train:
        numbers["seconds"] = results.train.seconds
    for name, entry in results.attacks.items():
        if entry.forget_acc:
            numbers |= {f"attacks/{name}/{when}": value for when, value in entry.forget_acc}
    return numbers


def tables(results: Results, folder: Path) -> dict[str, Sequence[Line]]:
    """Name to lines, which need not have the same keys: accuracies, and what the run left in its folder."""
    found: dict[str, Sequence[Line]] = {"tables/accuracy": _accuracy(results.qa)} if results.qa else {}
    for name, file in (("answers", folder / rundir.ANSWERS), ("samples", folder / rundir.SAMPLES)):
        if file.is_file():
            found[f"tables/{name}"] = list(rundir.lines(file))
    if results.ripple:
        found["tables/ripple"] = [_level(level) for level in results.ripple.levels]
    return found


def about(results: Results) -> dict[str, object]:
    """Where results come from: settings that were resolved, the commit, versions, and hashes of data and weights."""
    kept = {"model", "method", "layer", "steer", "alpha", "seed"}
    found: dict[str, object] = {"resolved": results.run.model_dump(include=kept, exclude_none=True)}
    if (origin := results.provenance) is not None:
        found |= {"versions": origin.versions, "config_hash": origin.config_hash, "command": origin.command}
        found |= {"data_hashes": origin.data_hashes, "model_digest": origin.model_digest, "delta": origin.delta_digest}
        if origin.git:
            found |= {"commit": origin.git.commit, "dirty": origin.git.dirty}
    return found


def _accuracy(qa: Qa) -> list[Line]:
    lines: list[Line] = []
    for name, row in qa.items():
        line: dict[str, object] = {"questions": name, "chance": row.chance}
        for state in ("base", "unlearned"):
            if found := row.of(state):
                line |= dict(zip((state, f"{state}_low", f"{state}_high"), (found.acc, *found.ci95), strict=True))
                line["n"] = found.n
        lines.append(line)
    return lines


def _level(level: RippleLevel) -> Line:
    low, high = level.lost.ci95
    kept = level.model_dump(include={"name", "n", "base", "unlearned", "distance"}, exclude_none=True)
    return {**kept, "lost": level.lost.mean, "lost_low": low, "lost_high": high}
