"""Accuracy of a model on every relation of atlas, plain and corrected for answer bias, as a table.

    python bench/atlas.py FOLDER [--delta RUN] [--half report] [--relations a,b] [--limit N] [--json OUT]

Options are scored by their log-likelihood after "Question: … Answer:". The corrected score of an option is its
log-likelihood minus its mean over a few other questions of the same relation; no label is used for it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch

from rmu_exp.worlds.atlas import world

OTHERS = 8  # questions over which an option's mean score is taken


def batches(prompts: list[list[int]], size: int = 32):
    by_length = defaultdict(list)
    for i, ids in enumerate(prompts):
        by_length[len(ids)].append(i)
    for same in by_length.values():
        yield from (same[i : i + size] for i in range(0, len(same), size))


class Scorer:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.tokens = 0

    @torch.no_grad()
    def scores(self, prompts: list[str], options: list[list[str]]) -> list[list[float]]:
        """Log-likelihood of each option after its prompt; options of one prompt number are as many as of another."""
        ids = [self.tokenizer(p)["input_ids"] for p in prompts]
        out: list[list[float]] = [[] for _ in prompts]
        width = len(options[0])
        for batch in batches(ids, max(1, 128 // width)):
            rows = torch.tensor([ids[i] for i in batch])
            done = self.model.model(rows, use_cache=True)
            first = self.model.lm_head(done.last_hidden_state[:, -1]).log_softmax(-1)
            rest = [[self.tokenizer(" " + o, add_special_tokens=False)["input_ids"] for o in options[i]] for i in batch]
            longest = max(len(o) for r in rest for o in r)
            total = torch.tensor([[first[b, o[0]].item() for o in r] for b, r in enumerate(rest)])
            self.tokens += rows.numel()
            if longest > 1:
                flat = [o for r in rest for o in r]
                padded = torch.tensor([o + [0] * (longest - len(o)) for o in flat])
                done.past_key_values.batch_repeat_interleave(width)
                states = self.model.model(padded[:, :-1], past_key_values=done.past_key_values).last_hidden_state
                where = [(n, t) for n, o in enumerate(flat) for t in range(len(o) - 1)]
                self.tokens += padded.numel()
                if where:
                    picked = torch.stack([states[n, t] for n, t in where])
                    logp = self.model.lm_head(picked).log_softmax(-1)
                    for k, (n, t) in enumerate(where):
                        total[n // width, n % width] += logp[k, flat[n][t + 1]]
            for b, i in enumerate(batch):
                out[i] = total[b].tolist()
        return out


def asked(scorer: Scorer, name: str, limit: int | None, count: int = OTHERS, half: str | None = None) -> list[dict]:
    """One row per question: what was right, what was chosen, plain and corrected."""
    questions = [q for q in world.questions(name) if half in (None, world.half(q.fact))]
    rng = random.Random(f"bench/{name}")
    if limit and len(questions) > limit:
        questions = rng.sample(questions, limit)

    def prompt(q: world.Question) -> str:
        return f"Question: {q.text}\nAnswer:"

    plain = scorer.scores([prompt(q) for q in questions], [list(q.choices) for q in questions])
    values = sorted({c for q in questions for c in q.choices})
    others = rng.sample(list(world.questions(name)), min(count, len(world.questions(name))))
    after = scorer.scores([prompt(q) for q in others], [values] * len(others)) if others else []
    rows = []
    for q, s in zip(questions, plain, strict=True):
        means = []
        for c in q.choices:
            seen = [a[values.index(c)] for o, a in zip(others, after, strict=True) if o.fact != q.fact]
            means.append(sum(seen) / len(seen) if seen else 0.0)
        fixed = [a - m for a, m in zip(s, means, strict=True)]
        rows.append(
            {
                "relation": name,
                "role": q.fact.relation.role,
                "topic": q.fact.relation.topic,
                "entity": q.fact.entity,
                "half": world.half(q.fact),
                "held_out": q.fact.relation.role == "forget" and q.fact.entity in world.held_out(q.fact.relation.topic),
                "answer": q.answer,
                "plain": s.index(max(s)),
                "corrected": fixed.index(max(fixed)),
                "mass": math.fsum(map(math.exp, s)),
            }
        )
    return rows


def accuracy(rows: list[dict], key: str) -> float:
    return sum(r[key] == r["answer"] for r in rows) / len(rows) if rows else float("nan")


def show(rows: list[dict], before: list[dict] | None = None) -> None:
    def line(name: str, part: list[dict], old: list[dict] | None) -> None:
        cells = [f"{name:34}", f"{len(part):5}"]
        for key in ("plain", "corrected"):
            cells.append(f"{accuracy(old, key):6.2f} →" if old else "")
            cells.append(f"{accuracy(part, key):6.2f}")
            if old:
                base = accuracy(old, key)
                cells.append(
                    f"kept {(accuracy(part, key) - 0.25) / (base - 0.25):5.2f}" if base > 0.25 else "kept    - "
                )
        cells.append(f"mass {sum(r['mass'] for r in part) / len(part):.2f}")
        print(*cells)

    def pick(test):
        return [r for r in rows if test(r)], [r for r in before if test(r)] if before else None

    for r in dict.fromkeys(r["relation"] for r in rows):
        line(f"{world.relation(r).role} {r}", *pick(lambda x, r=r: x["relation"] == r))
    for role in ("forget", "adjacent", "general"):
        part, old = pick(lambda x, role=role: x["role"] == role)
        if part:
            line(f"== {role}", part, old)
            for t in dict.fromkeys(x["topic"] for x in part):
                line(f"   {t}", *pick(lambda x, role=role, t=t: x["role"] == role and x["topic"] == t))
    for told in (True, False):
        part, old = pick(lambda x, told=told: x["role"] == "forget" and x["held_out"] != told)
        if part:
            line("== forget, " + ("in the texts" if told else "held out"), part, old)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--delta")
    parser.add_argument("--half", choices=["choose", "report"])
    parser.add_argument("--relations")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--others", type=int, default=OTHERS, help="0: plain accuracy only")
    parser.add_argument("--json")
    parser.add_argument("--before", help="rows of the base model, from --json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.folder)
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32)
    if given.delta:
        from safetensors.torch import load_file

        changed = {
            k: v for k, v in load_file(Path(given.delta) / "delta.safetensors").items() if k in model.state_dict()
        }
        assert changed
        model.load_state_dict(changed, strict=False)
    scorer = Scorer(model.eval(), tokenizer)
    names = given.relations.split(",") if given.relations else [r.name for r in world.RELATIONS]
    rows = []
    for name in names:
        rows += (mine := asked(scorer, name, given.limit, given.others, given.half))
        print(
            f"{name:12} {len(mine):4} {accuracy(mine, 'plain'):.2f} {accuracy(mine, 'corrected'):.2f}",
            file=sys.stderr,
            flush=True,
        )
        if given.json:
            Path(given.json).write_text(json.dumps(rows))
    before = json.loads(Path(given.before).read_text()) if given.before else None
    if before:
        keys = {(r["relation"], r["entity"]) for r in rows}
        before = [r for r in before if (r["relation"], r["entity"]) in keys]
    show(rows, before)


if __name__ == "__main__":
    main()
