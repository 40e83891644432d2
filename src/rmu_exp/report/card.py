"""The model card of an exported checkpoint: what was done to it, what was measured, what that does not show.

Made from results.json alone; what was not measured is not mentioned, except that it was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rmu_exp.report.tables import interval, percent, rows

NAMES = {
    "rmu": "representation misdirection for unlearning (RMU, [arXiv 2403.03218](https://arxiv.org/abs/2403.03218))"
}
LIMITS = """\
## What this does not show

A low score on questions does not show that knowledge is gone: it shows that the model does not answer them in this
form. RMU misdirects activations, and what lies below can be brought back. The authors of RMU say that it does not
prevent fine-tuning from recovering the performance (arXiv 2403.03218); others recovered most of it from RMU models by
fine-tuning on ten unrelated examples, or by removing a direction from the activations (arXiv 2409.18025). Topics next
to the forgotten ones usually suffer too. Whoever relies on this model should attack it first."""


def card(results: dict[str, Any]) -> str:
    """README.md of a checkpoint in Hugging Face's format.

    Args:
        results: the content of results.json; of ``run`` only ``model``, ``topics`` and ``trained_parameters``
            must be there, everything else may be missing.
    """
    sections = (_opening, _done, _measured, _repeat)
    body = [block for section in sections if (block := section(results))]
    return _front_matter(results) + "\n\n".join("\n".join(block) for block in body) + f"\n\n{LIMITS}\n"


def _origin(results: dict[str, Any]) -> dict[str, Any]:
    return dict(results.get("provenance") or {})


def _front_matter(results: dict[str, Any]) -> str:
    """Only a model of the hub can be linked as the base."""
    method = results["run"].get("method")
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    facts["tags"] = list(dict.fromkeys(["unlearning", "rmu", *([method] if method else [])]))
    if _origin(results).get("model_revision"):
        facts |= {"base_model": results["run"]["model"], "base_model_relation": "finetune"}
    return f"---\n{yaml.safe_dump(facts, sort_keys=True, allow_unicode=True)}---\n\n"


def _opening(results: dict[str, Any]) -> list[str]:
    run, origin = results["run"], _origin(results)
    short = Path(run["model"]).name or "a model"
    what = f"`{short}`"
    if origin.get("model_revision"):
        link = f"[{run['model']}](https://huggingface.co/{run['model']})"
        what = f"{link} at commit `{origin['model_revision']}`"
    method = NAMES.get(run.get("method", "rmu"), run.get("method", ""))
    topics = " and ".join(run["topics"])
    lines = [f"# {short}, unlearned", "", f"{what} after {method}" + (f" on the topics {topics}." if topics else ".")]
    if origin.get("model_digest"):
        lines += ["", f"Weights of the base: `{origin['model_digest']}`."]
    return lines


def _done(results: dict[str, Any]) -> list[str]:
    run, train = results["run"], results.get("train", {})
    facts = {
        "method": run.get("method"),
        "loop": {True: "the published one to the letter", False: "the project's own"}.get(run.get("faithful")),
        "layer": run.get("layer"),
        "steer": _per_topic(run, "steer"),
        "alpha": _per_topic(run, "alpha"),
        "steps": train.get("steps"),
        "seed": run.get("seed"),
    }
    told = [[key, str(value)] for key, value in facts.items() if value is not None]
    lines = ["## What was done", ""]
    lines += [*_table(["setting", "value"], told), ""] if told else []
    lines += ["Trained tensors; every other one is the base's, bit for bit:", ""]
    lines += [f"- `{name}`" for name in run["trained_parameters"]]
    hashes = _origin(results).get("data_hashes", {})
    if hashes:
        lines += ["", "Corpora:", ""]
        lines += [f"- {_role(run, name)}`{name}`, sha256 of its texts `{digest}`" for name, digest in hashes.items()]
    return lines


def _per_topic(run: dict[str, Any], key: str) -> str | None:
    if key not in run:
        return None
    return ", ".join(f"{value:g} ({topic})" for topic, value in zip(run["topics"], run[key], strict=True))


def _role(run: dict[str, Any], source: str) -> str:
    """Forget or retain, where the results tell."""
    roles = [role for role in ("forget", "retain") if source in run.get(role, ())]
    return f"{' and '.join(roles)}: " if roles else ""


def _measured(results: dict[str, Any]) -> list[str]:
    blocks = [_questions(results), perplexity_table(results), _probe(results), _attacks(results)]
    lines = ["## What was measured"]
    for block in blocks:
        lines += ["", *block] if block else []
    if len(lines) == 1:
        lines += ["", "Nothing was measured on this checkpoint."]
    if "attacks" not in results:
        lines += ["", "No attack was tried on it."]
    return lines


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *body)]


def _questions(results: dict[str, Any]) -> list[str]:
    qa = results.get("qa")
    if not qa:
        return []
    body = []
    for depth, name in rows(qa):
        row = qa[name]
        cells = [text for who in ("base", "unlearned") for text in _accuracy(row.get(who))]
        n = (row.get("unlearned") or row["base"])["n"]
        body.append(["&nbsp;&nbsp;" * depth + name, str(n), *cells, percent(row["chance"])])
    header = ["questions answered right", "n", "base", "95 %", "unlearned", "95 %", "chance"]
    return [
        *_table(header, body),
        "",
        "Intervals are Wilson's; the questions are those of lm-evaluation-harness's tasks.",
    ]


def _accuracy(summary: dict[str, Any] | None) -> list[str]:
    return [percent(summary["acc"]), interval(summary)] if summary else ["", ""]


def perplexity_table(results: dict[str, Any]) -> list[str]:
    """Perplexity before and after, with intervals; nothing when it was not measured."""
    found = results.get("perplexity")
    if not found:
        return []
    body = []
    for source, row in found.items():
        cells = [text for who in ("base", "unlearned") for text in _spread(row.get(who))]
        body.append([f"`{source}`", str((row.get("unlearned") or row["base"])["tokens"]), *cells])
    return _table(["perplexity on", "tokens", "base", "95 %", "unlearned", "95 %"], body)


def _spread(summary: dict[str, Any] | None) -> list[str]:
    """A perplexity and its 95 % interval, from the standard error of its logarithm."""
    if not summary:
        return ["", ""]
    centre, error = summary["perplexity"], summary.get("nll_stderr")
    if error is None:
        return [f"{centre:.2f}", ""]
    factor = math.exp(1.96 * error)
    return [f"{centre:.2f}", f"{centre / factor:.2f}–{centre * factor:.2f}"]


def _probe(results: dict[str, Any]) -> list[str]:
    found = results.get("probe")
    if not found:
        return []
    body = [[topic, *(percent(max(row[who])) for who in ("base", "unlearned"))] for topic, row in found.items()]
    return _table(["linear probe, best layer", "base", "unlearned"], body)


def _attacks(results: dict[str, Any]) -> list[str]:
    found = results.get("attacks")
    if not found:
        return []
    pairs = {name: row["forget_acc"] for name, row in found.items() if "forget_acc" in row}
    body = [[name, percent(pair["before"]), percent(pair["after"])] for name, pair in pairs.items()]
    return _table(["attack: forgotten questions right", "before", "after"], body)


def _repeat(results: dict[str, Any]) -> list[str]:
    origin = _origin(results)
    if "command" not in origin:
        return []
    git = origin.get("git")
    code = f"rmu_exp at commit `{git['commit']}`{' with changes' if git['dirty'] else ''}" if git else "rmu_exp"
    lines = ["## How to repeat it", "", f"    {origin['command']}", "", f"{code}; settings `{origin['config_hash']}`."]
    versions = ", ".join(f"{name} {number}" for name, number in origin.get("versions", {}).items())
    machine = ", ".join(f"{key} {value}" for key, value in origin.get("hardware", {}).items() if value)
    told = {"Versions": versions, "Machine": machine, "Changed tensors": _digest(origin.get("delta_digest"))}
    for what, text in told.items():
        lines += ["", f"{what}: {text}."] if text else []
    if "config" in origin:
        settings = yaml.safe_dump(origin["config"], sort_keys=False, allow_unicode=True).rstrip().splitlines()
        lines += ["", "<details><summary>All settings</summary>", "", "```yaml", *settings, "```", "", "</details>"]
    return lines


def _digest(value: str | None) -> str:
    return f"`{value}`" if value else ""
