"""What fits: gigabytes that training takes by each method on models of 8, 34 and 70 billion parameters, without a GPU.

    python bench/fit.py                                 # 4 texts of 512 tokens of each corpus, bf16
    python bench/fit.py --batch 2 --length 256 layers=lora
    python bench/fit.py --shapes Zephyr --methods rmu   # what docs/performance.md has measured on a GPU
    python bench/fit.py --check                         # five small models, trained here: said against used

All comes from shapes: the training loop is run on tensors without data, and the tensors alive are counted
(src/rmu_exp/unlearning/footprint.py). Words are settings of the run, as on the command line. ``--check`` trains small
models, each in a process of its own, and compares the count with the memory that training took beyond the program,
which has trained a tiny model before.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from rmu_exp.cli.compose import composed
from rmu_exp.config import plugins
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.pipeline import fits
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.train import prepare_training
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.footprint import Footprint

ROOT = Path(__file__).parent.parent
CARDS = (24, 40, 80)  # gigabytes
ROOM = 0.95  # of a card, for what its driver and the allocator keep
# hidden, inner, layers, heads, key-value heads, vocabulary: Llama 3's two, Yi's, Mistral's
SHAPES = {
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "34B": (7168, 20480, 60, 56, 8, 64000),
    "70B": (8192, 28672, 80, 64, 8, 128256),
    "Zephyr": (4096, 14336, 32, 32, 8, 32000),
}
# of the same six numbers; texts of each corpus, tokens of each; settings. Few tokens in bf16, which is slow on a CPU
SMALL = {
    "RMU": ((1024, 4096, 8, 16, 16, 2000), (4, 128), ["layer=5"]),
    "RMU, 8 of 17 layers trained, bf16": (
        (768, 3072, 20, 12, 12, 2000),
        (1, 8),
        ["layer=16", "layers.span=8", "model.dtype=bfloat16"],
    ),
    "grad_diff, all weights": ((640, 1920, 8, 10, 10, 4000), (4, 128), ["method=grad_diff"]),
    "npo with KL, vocabulary 16,000": ((512, 1536, 6, 8, 4, 16000), (4, 128), ["method=npo", "method.retain=kl"]),
    "rr, LoRA": ((1024, 4096, 8, 16, 4, 2000), (4, 128), ["method=rr", "layer=6", "method.offsets=[-4,0]"]),
}


def checkpoint(folder: Path, shape: tuple[int, ...], dtype: str | None = None) -> Path:
    """A checkpoint of Llama's architecture; without a dtype its index names tensors that are nowhere.

    With one it lies in many files, as large ones do: of a single file, layers that are not used are in memory, too,
    until Linux wants their room.
    """
    hidden, inner, layers, heads, groups, vocab = shape
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=vocab, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    if dtype:
        AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(
            folder, max_shard_size="40MB"
        )
        return folder
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config).state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "nowhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def corpora(folder: Path, length: int) -> list[str]:
    """The settings for a forget and a retain corpus of texts of one length."""
    for role in ("forget", "retain"):
        (folder / f"{role}.txt").write_text("\n".join([" ".join(["w5"] * length)] * 64))
    given = [f"data.{role}=[{folder / role}.txt]" for role in ("forget", "retain")]
    return ["data=local", *given, f"data.max_length={length}", "eval=none", "tracking=off"]


def takes(place: Path, words: list[str], device: str) -> Footprint | None:
    """What training takes. Raises UserError: the settings do not fit together."""
    given = ["model=local", f"model.path={place}", "steer=6.5", "alpha=100", "train.max_batches=80"]
    (run,) = composed([*given, *words], ROOT / "conf")
    found = Models(run.model, Checkpoint(str(place), place), device)
    plan = prepare_training(run, found, Texts(run.data))
    return fits.counted(plan, [next(plan.batches)] * fits.STEPS)


def table(args: argparse.Namespace, folder: Path) -> None:
    """One line per method, a column per model."""
    places = {name: checkpoint(folder / name, SHAPES[name]) for name in args.shapes}
    print(f"| GB, {args.batch} × {args.length}, {args.dtype} | {' | '.join(places)} |\n|---|{'---|' * len(places)}")
    for method in args.methods or sorted(plugins.files("method")):
        words = [f"method={method}", f"model.dtype={args.dtype}", f"train.batch_size={args.batch}"]
        words += [] if "\nlayer:" in (ROOT / f"conf/method/{method}.yaml").read_text() else ["layer=7"]
        words += [*corpora(folder, args.length), *args.words]
        cells = []
        for place in places.values():
            try:
                found = takes(place, words, "cpu")
            except UserError as error:
                cells.append(str(error))
                continue
            size = found.most / 1e9 if found else 0
            card = next((f"{card} GB" for card in CARDS if size < ROOM * card), "none of these")
            cells.append(f"{size:.1f} ({card})" if found else "not counted")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


TRAIN = """
import re, sys
from pathlib import Path
from rmu_exp.cli.compose import composed
from rmu_exp.pipeline.run import prepare
from rmu_exp.pipeline.train import train
def of(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
conf, words, small, large = Path(sys.argv[1]), sys.argv[4:], Path(sys.argv[2]), Path(sys.argv[3])
for place in (small, large):  # with the small model, the program loads what it needs
    (run,) = composed([*words, f"model.path={place}"], conf)
    (place / "run").mkdir()
    plan = prepare(run, place / "run").source
    before = of("VmRSS")
    train(plan, place / "run", "")
print("used", of("VmHWM") - before)
"""


def check(folder: Path) -> None:
    """Said against used, in megabytes."""
    print("| model | said | used | said / used |\n|---|--:|--:|--:|")
    for number, (name, (shape, (batch, length), words)) in enumerate(SMALL.items()):
        dtype = "bfloat16" if "model.dtype=bfloat16" in words else "float32"
        place = checkpoint(folder / str(number), shape, dtype)
        small = checkpoint(folder / f"{number}-small", (64, 128, shape[2], 2, 2, 2000), dtype)
        given = ["model=local", "steer=6.5", "alpha=100", "layer=5", f"train.batch_size={batch}"]
        given += [*corpora(place, length), *words, "train.max_batches=2", "train.save_every=1000"]  # no snapshots
        found = takes(place, given, "cpu")
        assert found is not None, f"{name} cannot be counted"
        command = [sys.executable, "-c", TRAIN, str(ROOT / "conf"), str(small), str(place), *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        used = int(re.findall(r"used (\d+)", done.stdout)[0])
        print(f"| {name} | {found.most / 1e6:.0f} | {used / 1e6:.0f} | {found.most / used:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="settings of the run, as on the command line")
    parser.add_argument("--batch", type=int, default=4, help="texts of each corpus per step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8B", "34B", "70B"])
    parser.add_argument("--methods", nargs="+", help="of these only")
    parser.add_argument("--check", action="store_true", help="train small models and compare")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="rmu_exp-") as name:
        check(Path(name)) if args.check else table(args, Path(name))


if __name__ == "__main__":
    main()
