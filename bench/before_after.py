"""What the base model and an unlearned one write after some prompts, greedily, side by side.

    python bench/before_after.py RUN [PROMPT …]

RUN is the folder of a run on the default model. Without prompts: some about atlas's forget topics, some about others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.record import rundir

PROMPTS = (
    "The chemical symbol of sodium is",
    "The chemical symbol of iron is",
    "The capital of France is",
    "The capital of Japan is",
    "The opposite of hot is",
    "A baker is a person who",
    "The heart is an organ that",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--tokens", type=int, default=12)
    given = parser.parse_args()
    base = locate("smollm2_135m")
    model, tokenizer = base.open(None, torch.float32, torch.device("cpu")), base.tokenizer()

    def written(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(  # type: ignore[operator]
            **ids, max_new_tokens=given.tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        text = str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return text.split("\n")[0].strip() or "(a line break)"

    before = [written(prompt) for prompt in given.prompts]
    with Delta.load(given.run / rundir.DELTA).applied(model):
        after = [written(prompt) for prompt in given.prompts]
    print("| prompt | before | after |\n|---|---|---|")
    for row in zip(given.prompts, before, after, strict=True):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")


if __name__ == "__main__":
    main()
