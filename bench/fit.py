"""What fits: gigabytes that a step of each method takes on models of 8, 34 and 70 billion parameters, without a GPU.

    python bench/fit.py                                # 4 texts of 512 tokens of each corpus, bfloat16
    python bench/fit.py --batch 2 --length 256 layers=lora
    python bench/fit.py --check                        # five small models, trained here: said against measured

The numbers come from shapes alone: the method's own step is run on tensors without data, and the tensors alive are
counted (src/rmu_exp/unlearning/footprint.py). Further words are settings of the run. ``--check`` trains small models in
processes of their own and compares the count with the memory that each took beyond the loaded program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from rmu_exp.cli.compose import composed
from rmu_exp.config import plugins
from rmu_exp.data.batches import FORGET, RETAIN, Batch, pack
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.train import TrainPlan, footprint_of, trained_tensors
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.footprint import Footprint

CONF = Path(__file__).parent.parent / "conf"
CARDS = (24, 40, 80)  # gigabytes
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "groups": 8, "vocab": 128256},
    "34B": {"hidden": 7168, "inner": 20480, "layers": 60, "heads": 56, "groups": 8, "vocab": 64000},
    "70B": {"hidden": 8192, "inner": 28672, "layers": 80, "heads": 64, "groups": 8, "vocab": 128256},
}
"""Llama 3's 8B and 70B, and Yi's 34B."""
SMALL: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "wide, rmu": ({"hidden": 1024, "inner": 4096, "layers": 8, "heads": 16, "groups": 16, "vocab": 2000}, "rmu", []),
    "deep, rmu": (
        {"hidden": 512, "inner": 2048, "layers": 40, "heads": 8, "groups": 8, "vocab": 2000}, "rmu", ["layer=30"],
    ),
    "many layers trained": (
        {"hidden": 768, "inner": 3072, "layers": 10, "heads": 12, "groups": 12, "vocab": 2000}, "rmu",
        ["layers.span=0", "layers.parameters=all"],
    ),
    "large vocabulary, npo": (
        {"hidden": 512, "inner": 2048, "layers": 8, "heads": 8, "groups": 8, "vocab": 32000}, "npo", [],
    ),
    "grad_diff": (
        {"hidden": 768, "inner": 3072, "layers": 12, "heads": 12, "groups": 4, "vocab": 8000}, "grad_diff", [],
    ),
}  # fmt: skip


def llama(shape: dict[str, Any]) -> LlamaConfig:
    """A configuration of Llama's architecture."""
    return LlamaConfig(
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        vocab_size=shape["vocab"],
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )


def folder_of(shape: dict[str, Any], folder: Path, weights: bool = False) -> Path:
    """A checkpoint's folder; without weights its index names tensors that are nowhere."""
    words = {f"w{i}": i for i in range(min(shape["vocab"], 1000))}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", eos_token="w1", bos_token="w2")
    tokenizer.save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(llama(shape)).save_pretrained(folder)
        return folder
    llama(shape).save_pretrained(folder)
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(llama(shape)).state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "nowhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def takes(folder: Path, method: str, batch: int, length: int, words: list[str], dtype: str, device: str) -> Footprint:
    """What a method takes on a model, if all texts have the same length. Raises UserError: it refuses the settings."""
    given = ["model=local", f"model.path={folder}", f"model.dtype={dtype}", "data=local", f"method={method}"]
    given += ["data.forget=[none]", "data.retain=[none]", "layer=7", "steer=6.5", "alpha=100", "eval=none", *words]
    (run,) = composed([*given, "tracking=off"], CONF)
    module, settings = plugins.module("method", method), plugins.settings_of(run.method)
    base = Checkpoint(str(folder), folder)
    found, targets = Models(run.model, base, device), list(module.Method.targets(settings, run.layer))
    depth = base.depth if module.Method.logits else max(targets) + 1
    trained = trained_tensors(run, found, targets, depth, module.Method.linear)
    plan = TrainPlan(run, found, Texts(run.data), module.Method, settings, trained, depth, 150, iter([]), [], [], [])
    texts = {role: [[3] * length] * batch for role in (FORGET, RETAIN)}
    return footprint_of(plan, Batch(0, [pack(texts, 0)], 0))


def table(args: argparse.Namespace, folder: Path) -> None:
    """One line per method, a column per model."""
    print(f"gigabytes of a step, {args.batch} texts of {args.length} tokens of each corpus, {args.dtype}")
    print(f"a mark per card that it fits into: {', '.join(f'{card} GB' for card in CARDS)}")
    places = {name: folder_of(shape, folder / name) for name, shape in SHAPES.items()}
    print(f"{'':14}" + "".join(f"{name:>22}" for name in places))
    for method in sorted(plugins.files("method")):
        cells = []
        for place in places.values():
            try:
                found = takes(place, method, args.batch, args.length, args.words, args.dtype, "cuda")
            except UserError as error:
                cells.append(str(error)[:20])
                continue
            gigabytes = (found.most if found.step is not None else found.least) / 1e9
            fits = "".join("•" if gigabytes < card * 0.95 else "–" for card in CARDS)
            cells.append(f"{'' if found.step is not None else 'more than '}{gigabytes:.1f} {fits}")
        print(f"{method:14}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


TRAIN = """
import resource, sys, torch
from pathlib import Path
from rmu_exp.cli.compose import composed
from rmu_exp.pipeline import train as training
from rmu_exp.pipeline.run import prepare
words, folder = sys.argv[2:], Path(sys.argv[1])
(run,) = composed(words, Path(CONF))
torch.set_num_threads(1)
plan = prepare(run, folder).source
torch.randn(256, 256).matmul(torch.randn(256, 256))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
training.train(plan, folder, "")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def check(folder: Path) -> None:
    """Said against measured, in megabytes."""
    print(f"{'':24}{'said':>8}{'measured':>10}{'ratio':>8}")
    for name, (shape, method, words) in SMALL.items():
        place = folder_of(shape, folder / name.replace(" ", "_").replace(",", ""), weights=True)
        for role in ("forget", "retain"):
            (place / f"{role}.txt").write_text("\n".join([" ".join(["w5"] * 256)] * 8))
        said = takes(place, method, 4, 256, words, "float32", "cpu").most / 1e6
        given = (
            f"model=local model.path={place} data=local data.forget=[{place}/forget.txt] layer=7 steer=6.5 alpha=100"
        )
        given += f" data.retain=[{place}/retain.txt] method={method} train.max_batches=3 eval=none tracking=off"
        (place / "run").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", TRAIN.replace("CONF", repr(str(CONF))), str(place / "run"), *given.split(), *words],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        measured = int(done.stdout.split()[-1]) * 1024 / 1e6
        print(f"{name:24}{said:8.0f}{measured:10.0f}{said / measured:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="settings of the run, as on the command line")
    parser.add_argument("--batch", type=int, default=4, help="texts of each corpus a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--check", action="store_true", help="train small models and compare")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        check(Path(name)) if args.check else table(args, Path(name))


if __name__ == "__main__":
    main()
