"""What a checkpoint's depth costs a run (seconds a step, peak memory), deep against shallow, alternating; an export.

    python bench/depth.py    # 12 against 48 layers × 256, layer 7
    python bench/depth.py --layers 8 24 --hidden 768 --length 16 --steps 3 --rounds 1    # memory against those bytes

Every run is `python train.py model=local … eval=none` in a process of its own. Models are of Mistral's architecture
with random weights in sharded checkpoints, texts are random words. Peak memory is the largest resident set of the
process, less that of the same run on a model 64 wide.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYER, WORDS = 7, 2000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=(12, 48), metavar=("FEW", "MANY"))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--length", type=int, default=64, help="tokens a text")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def checkpoint(folder: Path, layers: int, hidden: int) -> Path:
    """Written by a process of its own: a child's largest resident set counts what its parent held when it began."""
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder, layers, hidden))
    writer.start()
    writer.join()
    return folder


def write(folder: Path, layers: int, hidden: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        sliding_window=None,
        eos_token_id=1,
    )
    MistralForCausalLM(config).save_pretrained(folder, max_shard_size=200 * hidden * hidden)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)


def corpus(file: Path, length: int, seed: int) -> Path:
    rng = random.Random(seed)
    lines = (" ".join(f"w{rng.randrange(2, WORDS)}" for _ in range(length)) for _ in range(200))
    file.write_text("\n".join(lines) + "\n")
    return file


def peak(command: list[str]) -> int:
    """Bytes of the largest resident set of a command."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def needed(folder: Path) -> int:
    """Bytes of the embedding and of layers 0 to LAYER."""
    from rmu_exp.model import weight_files

    table = weight_files.needed(weight_files.weight_map(folder) or {}, LAYER + 1)
    entries = {n: e for file in set(table.values()) for n, e in weight_files.header(folder / file).items()}
    return sum(entries[name].end - entries[name].begin for name in table)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="rmu_exp-") as name:
        place = Path(name)
        bases = {n: checkpoint(place / str(n), n, args.hidden) for n in args.layers}
        forget, retain = (corpus(place / f"{role}.txt", args.length, i) for i, role in enumerate(("f", "r")))
        words = ["model=local", "data=local", f"data.forget=[{forget}]", f"data.retain=[{retain}]", f"layer={LAYER}"]
        words += ["steer=6.5", "alpha=100", f"train.max_batches={args.steps}", "eval=none", "tracking=off"]
        program = [sys.executable, str(ROOT / "train.py"), *words]
        took: dict[int, list[float]] = {n: [] for n in bases}
        peaks: dict[int, list[int]] = {n: [] for n in bases}
        small = checkpoint(place / "small", LAYER + 1, 64)
        least = peak([*program, f"model.path={small}", f"output={place / 'out-small'}"])
        for turn in range(args.rounds):
            for n, base in bases.items():
                out = place / f"out-{n}-{turn}"
                peaks[n].append(peak([*program, f"model.path={base}", f"output={out}"]) - least)
                took[n].append(json.loads((out / "results.json").read_text())["train"]["seconds_per_step"])
        few, many = args.layers
        print(f"layer {LAYER}, {args.hidden} wide, {args.length} tokens a text; the small model {least / 1e6:,.0f} MB")
        for n, base in bases.items():
            whole = sum(file.stat().st_size for file in base.glob("*.safetensors"))
            print(
                f"  {n:3} layers ({whole / 1e6:,.0f} MB on disk, {needed(base) / 1e6:,.0f} MB up to layer {LAYER}): "
                f"{statistics.median(took[n]):.4f} s a step, peak {statistics.median(peaks[n]) / 1e6:,.0f} MB more, "
                f"{statistics.median(peaks[n]) / needed(base):.2f} × those layers"
            )
        export = [sys.executable, "-m", "rmu_exp", "export", str(place / f"out-{many}-0"), str(place / "export")]
        shard = max(file.stat().st_size for file in bases[many].glob("*.safetensors"))
        more = peak(export) - least
        print(f"  export of {many} layers: {more / 1e6:+,.0f} MB; its largest shard {shard / 1e6:,.0f} MB")
        ratios = [statistics.median(b / a for a, b in zip(x[few], x[many], strict=True)) for x in (took, peaks)]
        print(f"  {many} against {few} layers: time {ratios[0]:.3f}, memory {ratios[1]:.3f}")


if __name__ == "__main__":
    main()
