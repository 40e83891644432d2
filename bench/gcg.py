"""GCG's candidates a second: rmu_exp's search against the obvious loop, alternating, in one process.

    python bench/gcg.py                          # lore's model, 6 questions, 64 candidates a round, on the CPU
    python bench/gcg.py --rounds 5 --width 256

The obvious loop runs every candidate with every question as a whole text, one at a time, without a cache. Both get
the same candidates and give the same losses (plain and with the base model's activations matched), which is checked
in every round. What proposes candidates (gradient, filter) is timed apart and is the same for both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rmu_exp.attacks.gcg_search import Search, Target, cut
from rmu_exp.evaluation import questions
from rmu_exp.evaluation.scoring import Scorer
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.hooks import BLOCK, watching
from rmu_exp.settings import Eval

LAYER = 7


def obvious(model: nn.Module, targets: Sequence[Target], candidates_CS: Tensor, weight: float) -> Tensor:
    """Mean loss over the targets of each candidate, (C)."""
    found = []
    for row in candidates_CS.tolist():
        total = 0.0
        for target in targets:
            kept: dict[int, Tensor] = {}
            with watching(model, lambda _place, layer, h_BTD, kept=kept: kept.update({layer: h_BTD[0, -1]})):
                ids = torch.tensor([target.head + row + target.tail], device=candidates_CS.device)
                logits_V = model(input_ids=ids, use_cache=False).logits[0, -1]
            loss = torch.nn.functional.cross_entropy(logits_V, torch.tensor(target.token, device=logits_V.device))
            away = [(kept[k] - base_D).pow(2).sum() / base_D.pow(2).sum() for k, base_D in target.match.items()]
            total += float(loss + weight * torch.stack(away).mean())
        found.append(total / len(targets))
    return torch.tensor(found)


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    checkpoint = locate("lore")
    model = checkpoint.open(None, torch.float32, torch.device("cpu"))
    scorer = Scorer(checkpoint.tokenizer(), torch.device("cpu"))
    asked = questions.needed(["lore_forget"], ["hexes", "wards"], Eval(limit=args.questions))[: args.questions]
    h_LND = scorer.at_last(model, [scorer.encode(item.context) for item in asked])[BLOCK]
    targets = [
        Target(
            *cut(scorer, item.context), scorer.letters(item)[item.answer], {k: h_LND[k, n] for k in range(LAYER, 12)}
        )
        for n, item in enumerate(asked)
    ]
    search = Search(model, scorer, targets, width=args.width, topk=64, weight=1.0)
    generator = torch.Generator().manual_seed(0)
    tokens_S = search.start(args.length, generator)
    ours, theirs, proposing = [], [], []
    for round_ in range(args.rounds + 1):
        seconds, candidates_CS = timed(lambda tokens_S=tokens_S: search.propose(tokens_S, generator))
        fast, losses_C = timed(lambda candidates_CS=candidates_CS: search.losses(candidates_CS))
        with torch.no_grad():
            slow, expected_C = timed(lambda candidates_CS=candidates_CS: obvious(model, targets, candidates_CS, 1.0))
        assert torch.allclose(losses_C, expected_C, rtol=1e-4), (losses_C - expected_C).abs().max()
        if round_:  # the first warms up
            count = len(candidates_CS)
            ours.append(count / fast)
            theirs.append(count / slow)
            proposing.append(seconds)
        tokens_S = candidates_CS[int(losses_C.argmin())]
    fast, slow = statistics.median(ours), statistics.median(theirs)
    prompt = len(targets[0].head) + args.length + len(targets[0].tail)
    print(f"{args.questions} questions of {prompt} tokens with {args.length} searched, {args.width} candidates a round")
    print(f"search {fast:8.1f} candidates/s   obvious loop {slow:8.1f} candidates/s   ratio {fast / slow:.1f}")
    print(f"losses equal to 1e-4; proposing {args.width} candidates takes {statistics.median(proposing):.3f} s")


if __name__ == "__main__":
    main()
