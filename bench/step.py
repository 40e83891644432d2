"""One step of RMU: rmu_exp's loop against the two-full-models loop, alternating, in one process.

    python bench/step.py                                       # 32 layers × 512, vocabulary 2,000, layer 7, 4 × 256
    python bench/step.py --layers 96
    python bench/step.py --lengths paragraphs                  # a third under 20 tokens, a third over 120, up to 512
    python bench/step.py --memory                              # peak memory, each loop in a process of its own
    python bench/step.py --device cuda --dtype bfloat16 --shape zephyr --length 512 --steps 50 --memory
    python bench/step.py --device cuda --dtype bfloat16 --shape mixtral --length 512 --only ours

The two-full-models loop is the published one's arithmetic: an updated and a frozen causal model, both run to the
logits, activations taken by a hook, texts padded to the longest of their batch, gradients for every parameter below the
hook. Models are of Mistral's (or Mixtral's) architecture with random weights, texts are random tokens.

Operations are counted by torch's FlopCounterMode (matrix products and attention; backward included). The floor is what
they take at the rate of a large matrix product measured in the same run. Beside the clock stands this process's CPU
time: with one thread (OMP_NUM_THREADS=1) it tells the work even on a machine that others use at the same time.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmu_exp.data.batches import Batch, Tokens, shuffled
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import drop_norm, layers_of
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu

SHAPES = {
    "zephyr": {"layers": 32, "hidden": 4096, "vocab": 32000},
    "mixtral": {"layers": 32, "hidden": 4096, "vocab": 32000, "experts": 8},
}
ALPHA, STEER, LR = [1200.0], [6.5], 5e-5
PAD = 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--experts", type=int, default=0, help="a mixture of so many, of Mixtral's architecture")
    parser.add_argument("--shape", choices=SHAPES, help="of a known model, in place of the four above")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4, help="texts of each corpus a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a text")
    parser.add_argument("--lengths", choices=("equal", "paragraphs"), default="equal")
    parser.add_argument("--steps", type=int, default=1, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", choices=("ours", "theirs"), help="one loop alone; prints its peak memory")
    parser.add_argument("--memory", action="store_true", help="compare peak memory, each loop in its own process")
    args = parser.parse_args()
    for key, value in SHAPES.get(args.shape, {}).items():
        setattr(args, key, value)
    return args


def config_of(args: argparse.Namespace) -> Any:
    from transformers import MistralConfig, MixtralConfig

    wide = args.shape is not None
    experts = {"num_local_experts": args.experts} if args.experts else {}
    return (MixtralConfig if args.experts else MistralConfig)(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=14336 if wide else args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=32 if wide else args.hidden // 64,
        num_key_value_heads=8 if wide else args.hidden // 64,
        max_position_embeddings=4096,
        sliding_window=None,
        **experts,
    )


def built(args: argparse.Namespace, make: Callable[[], Any]) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    torch.manual_seed(0)
    try:
        with torch.device(args.device):
            return make().eval()
    finally:
        torch.set_default_dtype(before)


def truncated(args: argparse.Namespace) -> Any:
    """The first layers, without a head."""
    from transformers import AutoModel

    config = copy.deepcopy(config_of(args))
    config.num_hidden_layers = args.layer + 1
    model = built(args, lambda: AutoModel.from_config(config))
    drop_norm(model)
    return model.requires_grad_(False)


def full(args: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    return built(args, lambda: AutoModelForCausalLM.from_config(config_of(args)))


def corpus(args: argparse.Namespace, seed: int) -> Tokens:
    """Random texts, more than a few rounds need."""
    rng = random.Random(seed)
    thirds = [(1, 19), (20, 120), (121, 512)]
    sizes = [args.length if args.lengths == "equal" else rng.randint(*thirds[i % 3]) for i in range(240)]
    rng.shuffle(sizes)
    return Tokens([[rng.randrange(1, args.vocab) for _ in range(n)] for n in sizes])


class Ours:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = truncated(args)
        names = ["block_sparse_moe.experts.0.w3.weight"] if args.experts else None
        self.trained = resolve(self.model, [args.layer - 2, args.layer - 1, args.layer], names)
        device = torch.device(args.device)
        context = Context(args.layer, ["topic"], STEER, ALPHA, args.hidden, device, args.steps)
        self.method = rmu.Method(rmu.Settings(faithful=False), context)

    def run(self, batches: list[Batch]) -> None:
        unlearn(self.model, self.trained, batches, self.method, LR)


class Theirs:
    """Two full models."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.updated, self.frozen = full(args), full(args)
        stack = layers_of(self.updated)
        params = [stack[i].mlp.down_proj.weight for i in (args.layer - 2, args.layer - 1, args.layer)]
        self.optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)
        self.control = torch.randn(1, args.hidden, device=args.device, dtype=getattr(torch, args.dtype))

    def hidden(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = layers_of(model)[self.args.layer].register_forward_hook(lambda _m, _i, out: kept.append(out))
        model(input_ids=ids, attention_mask=mask)
        hook.remove()
        return kept[0]

    def run(self, batches: list[Batch]) -> None:
        for batch in batches:
            forget, retain = (padded(batch, role, self.args.device) for role in ("forget", "retain"))
            h = self.hidden(self.updated, *forget)
            loss = rmu.forget_loss(h, self.control[0])
            k = self.hidden(self.updated, *retain)
            with torch.no_grad():
                g = self.hidden(self.frozen, *retain)
            loss = loss + ALPHA[0] * rmu.retain_loss(k, g)
            self.updated.zero_grad()
            loss.backward()
            self.optimizer.step()


def padded(batch: Batch, role: str, device: str) -> tuple[Tensor, Tensor]:
    """The batch's texts of one role, padded on the left to the longest."""
    packed = batch.passes[0]
    ids, positions = packed.ids_RT.flatten(), packed.positions_RT
    assert positions is not None
    texts: list[list[int]] = []
    for index in packed.tokens[role].tolist():
        if positions.flatten()[index] == 0:
            texts.append([])
        texts[-1].append(int(ids[index]))
    width = max(map(len, texts))
    rows = torch.tensor([[PAD] * (width - len(t)) + t for t in texts], device=device)
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=device)
    return rows, mask


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Took(NamedTuple):
    """Seconds on the clock and of this process's CPU time."""

    clock: float
    cpu: float


def seconds(call: Callable[[], Any], device: str, share: int = 1) -> Took:
    """What a call takes, divided by ``share``."""
    synchronise(device)
    start, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise(device)
    return Took((time.perf_counter() - start) / share, (time.process_time() - cpu) / share)


def ratios(others: list[Took], own: list[Took]) -> str:
    """Medians over rounds that alternated."""
    clock, cpu = (statistics.median(b[i] / a[i] for a, b in zip(own, others, strict=True)) for i in (0, 1))
    return f"{clock:.2f}x on the clock, {cpu:.2f}x of CPU time"


def spread(times: list[Took]) -> str:
    """The medians, and every round."""
    clock, cpu = (statistics.median(t[i] for t in times) for i in (0, 1))
    return f"{clock:.3f} s ({cpu:.3f} CPU)  of {', '.join(f'{t.clock:.2f} ({t.cpu:.2f})' for t in times)}"


def rates(args: argparse.Namespace) -> tuple[float, float]:
    """Floating-point operations a second of a large matrix product, and bytes a second of a copy; best of several."""
    on_gpu = args.device.startswith("cuda")
    n, dtype = (8192 if on_gpu else 1536), getattr(torch, args.dtype)
    a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
    source = torch.empty((1 << 30) if on_gpu else (1 << 27), dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    product = min(seconds(partial(torch.mm, a, b), args.device).clock for _ in range(8))
    copying = min(seconds(partial(target.copy_, source), args.device).clock for _ in range(8))
    return 2 * n**3 / product, 2 * source.numel() / copying


def counted(run: Callable[[list[Batch]], None], batches: list[Batch]) -> float:
    """Operations of a run; NaN where this torch's counter does not know grouped attention."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with FlopCounterMode(display=False) as counter:
            run(batches)
        return float(counter.get_total_flops())
    except AssertionError as error:
        print(f"  not counted: FlopCounterMode of torch {torch.__version__} refuses this attention ({error})")
        return math.nan


def rounds(args: argparse.Namespace) -> Iterator[list[Batch]]:
    batches = shuffled([corpus(args, 1)], [corpus(args, 2)], args.batch, args.steps * (args.rounds + 1), 0, PAD)
    for _ in range(args.rounds + 1):
        yield [next(batches) for _ in range(args.steps)]


def peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(args: argparse.Namespace) -> None:
    """One loop: seconds a step, and what its models and steps add to the memory of a process with its imports."""
    _ = config_of(args)
    before = peak(args.device)
    loop = Ours(args) if args.only == "ours" else Theirs(args)
    times = [seconds(partial(loop.run, steps), args.device, len(steps)) for steps in rounds(args)]
    print(f"{args.only}: a step {spread(times[1:])}")
    print(f"{args.only}: {peak(args.device) - before} bytes")


def memory(args: argparse.Namespace) -> None:
    """Both loops, each in a process of its own."""
    found = {}
    for only in ("ours", "theirs"):
        words = [w for w in sys.argv[1:] if w != "--memory"]
        line = subprocess.run(
            [sys.executable, __file__, *words, "--only", only, "--rounds", "1"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()[-1]
        found[only] = int(line.split()[-2])
        print(f"  peak memory          {only:6} {found[only] / 1e6:,.0f} MB")
    print(f"  ratio                {found['ours'] / found['theirs']:.2f}x")


def compare(args: argparse.Namespace) -> None:
    loops = {"ours": Ours(args), "theirs": Theirs(args)}
    times: dict[str, list[Took]] = {"ours": [], "theirs": []}
    tokens: list[float] = []
    work: dict[str, float] = {}
    for number, steps in enumerate(rounds(args)):
        if number == 0:  # warms both up
            work = {name: counted(loop.run, steps) / len(steps) for name, loop in loops.items()}
            continue
        tokens.append(sum(b.text_tokens for b in steps) / len(steps))
        for name, loop in loops.items():
            times[name].append(seconds(partial(loop.run, steps), args.device, len(steps)))
    rate, bandwidth = rates(args)
    weights = sum(p.numel() * p.element_size() for p in loops["ours"].model.parameters())
    print(f"  text tokens          {statistics.median(tokens):.0f} a step")
    print(f"  matrix rate          {rate / 1e9:,.0f} GFLOP/s; copies {bandwidth / 1e9:.1f} GB/s")
    reading = 3 * weights / bandwidth  # of the upper layers more than of the trunk: thrice is an upper bound
    floor = f"{reading:.3f} s by its weights' bytes"
    if not math.isnan(sum(work.values())):
        print(f"  counted, a step      ours {work['ours'] / 1e9:.1f} GFLOP, theirs {work['theirs'] / 1e9:.1f}")
        floor = f"{work['ours'] / rate:.3f} s by its operations, {floor}"
    print(f"  floor of ours        {floor}")
    for name in loops:
        print(f"  {name:6} a step        {spread(times[name])}")
    print(f"  ratio                {ratios(times['theirs'], times['ours'])}")


def main() -> None:
    args = arguments()
    on_gpu = args.device.startswith("cuda")
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    texts = f"{args.batch} × {args.length} tokens" if args.lengths == "equal" else f"{args.batch} texts like paragraphs"
    if args.only:
        alone(args)
        return
    print(
        f"{args.layers} layers × {args.hidden}, vocabulary {args.vocab}, layer {args.layer}, {texts}, {args.dtype}, "
        f"{where}, torch {torch.__version__}"
    )
    if args.memory:
        memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
