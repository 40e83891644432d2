"""Multiple-choice questions: lm-eval's stock HF class against rmu_exp's Engine, alternating, in one process.

    python bench/questions.py                                  # 8 layers × 512, vocabulary 32,000, on the CPU
    python bench/questions.py --model smollm2_135m             # a real model: atlas's questions, without letters
    python bench/questions.py --device cuda --dtype bfloat16 --shape zephyr --questions 311 --subjects 57 --repeats 1

Without --model, questions have MMLU's format and are made of random words, and a model of Mistral's architecture has
random weights.
Five-shot questions share one prefix a subject, zero-shot ones the description's line. `--few-shot 0` leaves the
five-shot part out, `--zero-shot 0` the other. 57 subjects × 311 questions are 17,727, the count of WMDP and MMLU.

Same memory for both: the stock class gets the batch size at which its rows times their mean length are the engine's
budget of tokens. Its logits, rows × length × vocabulary, come on top, so it is not the one that is held short.

Floor: the multiplications and additions that the engine's rows need (matrices of every layer for each token run, query
and key pairs, the head at the scored positions) at the rate of a large matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

SHAPES = {"zephyr": {"layers": 32, "hidden": 4096, "vocab": 32000}}
LETTERS = "ABCD"
Pair = tuple[str, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a checkpoint as in model.name, asked --questions of each of atlas's three tasks"
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--shape", choices=SHAPES, help="zephyr: 32 layers × 4096, grouped keys, vocabulary 32,000")
    parser.add_argument("--few-shot", type=int, default=5, help="examples in the shared prefix; 0: no such part")
    parser.add_argument("--zero-shot", type=int, default=1, help="0: no such part")
    parser.add_argument("--questions", type=int, default=100, help="a subject")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--max-batch-tokens", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for key, value in SHAPES.get(args.shape, {}).items():
        setattr(args, key, value)
    return args


def word_tokenizer(vocab: int) -> Any:
    """One token a word, as many words as the vocabulary has room for."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "\n", ".", ":", "Answer", *LETTERS]
    words += [f"w{i}" for i in range(vocab - len(words))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split(Regex(r"[\n.:]"), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def random_model(args: argparse.Namespace) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    wide = args.hidden == SHAPES["zephyr"]["hidden"]
    config = MistralConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=14336 if wide else args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=32 if wide else args.hidden // 64,
        num_key_value_heads=8 if wide else args.hidden // 64,
        max_position_embeddings=4096,
        sliding_window=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            return MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def real_model(args: argparse.Namespace) -> tuple[Any, Any, list[Pair]]:
    """A checkpoint, its tokenizer, and atlas's questions: each prompt with its four options."""
    from rmu_exp.evaluation import questions
    from rmu_exp.model.checkpoint import locate
    from rmu_exp.settings import Eval

    checkpoint = locate(args.model)
    model = checkpoint.open(None, getattr(torch, args.dtype), torch.device(args.device))
    tasks = ["atlas_forget", "atlas_adjacent", "atlas_general"]
    asked = [q for part in questions.load(tasks, [], Eval(limit=args.questions, draw=0)).values() for q in part]
    pairs = [(q.context, option) for q in asked if len(q.options) == len(LETTERS) for option in q.options]
    return model, checkpoint.tokenizer(), pairs


def mmlu_like(args: argparse.Namespace, shots: int) -> list[Pair]:
    """Questions in MMLU's format; lengths are spread as MMLU's are, most of 50 to 150 tokens."""
    rng = random.Random(0)

    def some(n: int) -> str:
        return " ".join(f"w{rng.randrange(args.vocab - 20)}" for _ in range(n))

    def question() -> str:
        stem = some(min(400, 8 + int(rng.lognormvariate(3.5, 0.8))))
        size = rng.choice([2, 4, 8, 14])
        return f"{stem}\n" + "".join(f"{letter}. {some(rng.randint(1, size))}\n" for letter in LETTERS) + "Answer:"

    pairs = []
    for _ in range(args.subjects):
        prefix = f"w1 w2 w3 w4 w5 w6 w7 w8 w9 {some(2)}.\n\n"
        prefix += "".join(f"{question()} {rng.choice(LETTERS)}\n\n" for _ in range(shots))
        if shots:
            prefix += f"{some(max(0, 500 - len(prefix.split())))}\n\n"  # never under 500 tokens
        for _ in range(args.questions):
            asked = prefix + question()
            pairs += [(asked, f" {letter}") for letter in LETTERS]
    return pairs


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_rate(args: argparse.Namespace) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    n = 8192 if args.device.startswith("cuda") else 1536
    a, b = (torch.randn(n, n, device=args.device, dtype=getattr(torch, args.dtype)) for _ in range(2))
    best = 0.0
    for _ in range(8):
        synchronise(args.device)
        start = time.perf_counter()
        a @ b
        synchronise(args.device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def operations(model: Any, work: Any) -> float:
    """Counted floating-point operations of what the engine ran; a multiplication and an addition are two."""
    config = model.config
    in_layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    attention = 4 * config.num_attention_heads * model.model.layers[0].self_attn.head_dim * config.num_hidden_layers
    head = 2 * config.vocab_size * config.hidden_size
    return 2.0 * in_layers * work.tokens + attention * work.pairs + head * work.scored


def timed(call: Callable[[], Any], device: str) -> tuple[tuple[float, float], Any]:
    """Seconds on the clock and of this process's CPU time, and what was found."""
    synchronise(device)
    start, cpu = time.perf_counter(), time.process_time()
    found = call()
    synchronise(device)
    return (time.perf_counter() - start, time.process_time() - cpu), found


def choices(answers: list[tuple[float, bool]]) -> list[int]:
    rows = [[value for value, _ in answers[i : i + 4]] for i in range(0, len(answers), 4)]
    return [row.index(max(row)) for row in rows]


def compare(args: argparse.Namespace, model: Any, tokenizer: Any, pairs: list[Pair], what: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from rmu_exp.evaluation.engine import Engine

    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]

    def engine() -> Any:
        return Engine(pretrained=model, tokenizer=tokenizer, max_batch_tokens=args.max_batch_tokens)

    budget = engine().max_batch_tokens
    lengths = [len(ids) for ids in tokenizer([context for context, _ in pairs[::4]])["input_ids"]]
    mean = sum(lengths) / len(lengths)
    rows = max(1, round(budget / mean))
    few = args.questions * 4
    prefix = len(tokenizer.tokenize(os.path.commonprefix([context for context, _ in pairs[:few]])))  # noqa: RUF071
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows)
    engine().loglikelihood(requests[: min(few, 200)], disable_tqdm=True)  # warm-up of both
    stock.loglikelihood(requests[: 4 * rows], disable_tqdm=True)
    own_times, stock_times = [], []
    for _ in range(args.repeats):
        mine = engine()
        seconds, own = timed(lambda mine=mine: mine.loglikelihood(requests, disable_tqdm=True), args.device)
        own_times.append(seconds)
        seconds, theirs = timed(lambda: stock.loglikelihood(requests, disable_tqdm=True), args.device)
        stock_times.append(seconds)
    rate, counted = matrix_rate(args), operations(model, mine.work)
    took, took_stock = (statistics.median(t for t, _ in times) for times in (own_times, stock_times))
    apart = max(abs(a - b) for (a, _), (b, _) in zip(own, theirs, strict=True))
    same = choices(own) == choices(theirs)
    print(
        f"\n{what}: {len(lengths)} questions, {mean:.0f} tokens each (mean), {prefix} of them shared by the first ones"
    )
    print(f"  batches              engine {budget} tokens, stock {rows} rows of {mean:.0f} tokens")
    print(
        f"  engine ran           {mine.work.tokens} tokens in {mine.work.forwards} forwards "
        f"({1 - mine.work.text / mine.work.tokens:.1%} padding), {sum(lengths)} tokens in the questions"
    )
    print(
        f"  counted              {counted / 1e12:.3f} TFLOP; matrix rate {rate / 1e9:.0f} GFLOP/s; "
        f"floor {counted / rate:.2f} s"
    )
    print(f"  engine               {took:.2f} s ({counted / rate / took:.0%} of the matrix rate)  {spread(own_times)}")
    print(f"  stock                {took_stock:.2f} s  {spread(stock_times)}")
    print(f"  ratio                {took_stock / took:.2f}x")
    print(f"  log-likelihoods      differ by at most {apart:.1e}; same choices: {'yes' if same else 'no'}")
    if not same:
        differ = sum(a != b for a, b in zip(choices(own), choices(theirs), strict=True))
        print(f"                       {differ} choices differ")


def spread(times: list[tuple[float, float]]) -> str:
    """Every run: its CPU time tells one that was slow from one that had to share the machine."""
    return "of " + ", ".join(f"{clock:.2f} ({cpu:.1f} CPU)" for clock, cpu in times)


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    for name in ("lm_eval", "lm-eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parts: list[tuple[list[Pair], str]]
    if args.model:
        model, tokenizer, pairs = real_model(args)
        parts, named = [(pairs, "zero-shot, without letters")], args.model
    else:
        model, tokenizer, named = (
            random_model(args),
            word_tokenizer(args.vocab),
            f"{args.layers} layers × {args.hidden}",
        )
        shots = [args.few_shot] * (args.few_shot > 0) + [0] * (args.zero_shot > 0)
        parts = [(mmlu_like(args, n), f"{n}-shot, {args.subjects} subjects") for n in shots]
    on_gpu = args.device.startswith("cuda")
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"{named}, vocabulary {model.config.vocab_size}, {args.dtype}, {where}, torch {torch.__version__}")
    for asked, what in parts:
        compare(args, model, tokenizer, asked, what)


if __name__ == "__main__":
    main()
