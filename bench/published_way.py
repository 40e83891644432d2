"""The default command beside the published way, on the same model, texts and questions: seconds and peak memory.

    python bench/published_way.py [--steps 60] [--limit N]

The published way: two full models in memory, full forward passes with padding, a hook for activations, torch's AdamW
on three matrices (github.com/centerforaisafety/wmdp); then lm-eval's command line on the base and on the unlearned
checkpoint. Both sides start from the dequantised checkpoint in the cache, and each is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LAYER, STEER, SIZE, LENGTH = 7, 6.5, 4, 128


def measured(line: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(line[:4])} … failed")
    return time.perf_counter() - began, used.ru_maxrss * 1024


def published_loop(base: Path, out: Path, steps: int, alpha: float, lr: float) -> None:
    """Unlearn atlas's two topics from the model in a folder, and save the result."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rmu_exp.worlds import atlas

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    updated, frozen = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    weights = [updated.model.layers[i].mlp.down_proj.weight for i in (LAYER - 2, LAYER - 1, LAYER)]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    seen: dict[str, Any] = {}
    for name, model in (("updated", updated), ("frozen", frozen)):
        model.model.layers[LAYER].register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out[0] if isinstance(out, tuple) else out})
        )

    def inputs(texts: list[str]) -> Any:
        return tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)

    forget, retain = [atlas.texts("elements"), atlas.texts("capitals")], atlas.texts("retain")
    torch.manual_seed(0)
    targets = []
    for texts in forget:
        with torch.no_grad():
            frozen(**inputs(texts[: 4 * SIZE]))
        u = torch.rand(frozen.config.hidden_size)
        targets.append(u / u.norm() * STEER * seen["frozen"][:, 1:].norm(dim=-1).median())
    for step in range(steps):
        topic, at = step % 2, SIZE * (step // 2)
        some = [texts[at % len(texts) : at % len(texts) + SIZE] for texts in (forget[topic], retain)]
        updated(**inputs(some[0]))
        h = seen["updated"]
        loss = torch.nn.functional.mse_loss(h, targets[topic].expand_as(h))
        kept = inputs(some[1])
        updated(**kept)
        with torch.no_grad():
            frozen(**kept)
        loss = loss + alpha * torch.nn.functional.mse_loss(seen["updated"], seen["frozen"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    updated.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--alpha", type=float, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, help="questions per task; all by default")
    parser.add_argument("--loop", nargs=2, metavar=("BASE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        published_loop(*map(Path, given.loop), given.steps, given.alpha, given.lr)
        return
    from rmu_exp.model.gguf import PACKAGES, from_gguf

    base, tasks = from_gguf(PACKAGES["smollm2_135m"].file()), "atlas_forget,atlas_adjacent,atlas_general"
    limit = [] if given.limit is None else ["--limit", str(given.limit)]
    sizes = ["--steps", str(given.steps), "--alpha", str(given.alpha), "--lr", str(given.lr)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["RMU_EXP_CACHE"] = os.environ.get("RMU_EXP_CACHE") or str(base.parent.parent)
        ours = [
            sys.executable,
            "train.py",
            f"layer={LAYER}",
            f"steer={STEER}",
            "tracking=off",
            f"output={folder / 'run'}",
        ]
        ours += [
            f"train.max_batches={given.steps}",
            f"alpha={given.alpha}",
            f"train.lr={given.lr}",
            "eval.corrected=false",
        ]
        ours += [] if given.limit is None else [f"eval.limit={given.limit}"]
        for kept in (base.parent.parent / "base_answers").glob("*"):
            kept.unlink()  # the base is asked anew on both sides
        mine = measured(ours)
        parts = {"loop": measured([sys.executable, __file__, *sizes, "--loop", str(base), str(folder / "model")])}
        for who, place in (("base", base), ("unlearned", folder / "model")):
            line = [str(Path(sys.executable).parent / "lm_eval"), "run", "--model", "hf", "--device", "cpu", *limit]
            line += ["--model_args", f"pretrained={place},dtype=float32", "--tasks", tasks, "--batch_size", "16"]
            line += ["--include_path", "src/rmu_exp/worlds/atlas/tasks"]
            parts[f"questions, {who}"] = measured(line)
    theirs = sum(seconds for seconds, _ in parts.values()), max(peak for _, peak in parts.values())
    for name, (seconds, peak) in {"this command": mine, **parts, "published way": theirs}.items():
        print(f"{name:22} {seconds:7.1f} s  {peak / 2**30:5.2f} GiB")
    print(json.dumps({"faster": round(theirs[0] / mine[0], 2), "memory": round(mine[1] / theirs[1], 2)}))


if __name__ == "__main__":
    main()
