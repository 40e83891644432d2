"""`method.faithful=true` from its command line to its export, against the published loop written down naively.

Two full models, every layer, a hook, as the released ``rmu/unlearn.py`` does it. Nothing of the project's own code is
used on that side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import a_run
import pytest
import torch
from families import WORDS, make_checkpoint, save_tokenizer
from torch import Tensor

from rmu_exp.cli import compose
from rmu_exp.pipeline.run import execute
from rmu_exp.worlds import atlas

STEER, ALPHA, LR, SIZE, MOST, SEED = [6.5, 6.5], [1200.0, 1200.0], 5e-5, 4, 20, 42
LAYERS = (5, 6, 7)
TrainedTensor = Callable[[Any], list[tuple[Tensor, Any]]]


def lines(count: int, seed: int, longest: int) -> list[str]:
    """Harmless texts of 1 to ``longest`` words."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in sizes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two forget topics and a retain file of unequal lengths, some beyond 512 and 768 tokens."""
    folder = tmp_path_factory.mktemp("texts")
    made = {name: folder / name for name in ("a.jsonl", "b.jsonl", "r.txt")}
    bare, objects = lines(21, 1, 700), [{"title": "t", "text": text} for text in lines(13, 2, 1000)]
    made["a.jsonl"].write_text("".join(json.dumps(text) + "\n" for text in bare))
    made["b.jsonl"].write_text("".join(json.dumps(item) + "\n" for item in objects))
    made["r.txt"].write_text("\n\n".join(lines(18, 3, 900)) + "\n \n")
    return made


def published_loop(
    folder: Path,
    forget: list[list[str]],
    retain: list[list[str]],
    trained: TrainedTensor,
    most: int = MOST,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, int]:
    """The updated model, and how many steps it took.

    Args:
        trained: of a model: its trained parameters, each with the slice that the optimizer may change.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.truncation_side = tokenizer.eos_token_id, "left", "right"
    updated, frozen = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for _ in range(2))
    updated.train()
    pieces = trained(updated)
    state = [(torch.zeros_like(p[index]), torch.zeros_like(p[index])) for p, index in pieces]
    torch.manual_seed(SEED)
    control = []
    for c in STEER:
        u = torch.rand(1, 1, updated.config.hidden_size, dtype=dtype)
        control.append(u / torch.norm(u) * c)
    batches = [[t[i : i + SIZE] for i in range(0, len(t), SIZE)] for t in (*forget, *retain)]
    steps = min(most, *map(len, batches))
    for step in range(steps):
        topic, at = step % 2, step // 2
        cut = lambda texts, most: tokenizer(  # noqa: E731
            texts, return_tensors="pt", padding=True, truncation=True, max_length=most, return_token_type_ids=False
        )
        texts = cut(batches[topic][at], 512 if topic == 0 else 768)
        kept = cut(batches[2 + topic][at], 512)
        h = hidden(updated, texts)
        loss = torch.nn.functional.mse_loss(h, control[topic].expand_as(h))
        h = hidden(updated, kept)
        with torch.no_grad():
            g = hidden(frozen, kept)
        loss = loss + torch.nn.functional.mse_loss(h, g) * ALPHA[topic]
        updated.zero_grad()
        loss.backward()
        with torch.no_grad():
            size = LR * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
            for (p, index), (m, v) in zip(pieces, state, strict=True):
                m.mul_(0.9).add_(p.grad[index], alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad[index], p.grad[index], value=0.001)
                p[index].addcdiv_(m, v.sqrt().add_(1e-6), value=-size)
    return updated, steps


def hidden(model: Any, inputs: Any) -> Tensor:
    kept: list[Any] = []
    hook = model.model.layers[7].register_forward_hook(lambda _m, _i, out: kept.append(out))
    model.model(**inputs)  # its head, a quarter of a small model's work, is not asked for
    hook.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


def down(model: Any) -> list[tuple[Tensor, Any]]:
    return [(model.model.layers[i].mlp.down_proj.weight, ...) for i in LAYERS]


def first_experts_up(model: Any) -> list[tuple[Tensor, Any]]:
    half = model.config.intermediate_size
    return [(model.model.layers[i].mlp.experts.gate_up_proj, (0, slice(half, 2 * half))) for i in LAYERS]


@pytest.mark.parametrize(
    ("family", "trained", "name"),
    [
        ("mistral", down, "mlp.down_proj.weight"),
        ("mixtral", first_experts_up, "block_sparse_moe.experts.0.w3.weight"),
    ],
)
def test_final_weights_are_the_published_loops(
    family: str, trained: TrainedTensor, name: str, files: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    from transformers import AutoModelForCausalLM

    base, out = tmp_path / "base", tmp_path / "out"
    make_checkpoint(family, base, layers=9, shard="60KB", max_position_embeddings=1024)
    save_tokenizer(base, unk_token="<unk>", eos_token="</s>", pad_token="w5")  # which the published loop does not use
    a, b, r = files.values()
    words = f"""model=local model.path={base} data=local data.forget=[{a},{b}] data.retain=[{r},{r}]
        layer=7 steering=absolute steer=[6.5,6.5] alpha=[1200,1200] method=rmu method.faithful=true train.lr=5e-5
        train.batch_size=4 train.max_batches=20 seed=42 eval=none tracking=off export=true output={out}""".split()
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    (run,) = compose.composed(words, a_run.CONF)
    execute(run, out)

    forget = [[json.loads(line) for line in a.read_text().splitlines()]]
    forget += [[json.loads(line)["text"] for line in b.read_text().splitlines()]]
    retain = [line for line in r.read_text().splitlines() if line.strip()]
    updated, steps = published_loop(base, forget, [retain, retain], trained)
    results = json.loads((out / "results.json").read_text())
    assert results["train"]["steps"] == steps == 4  # b.jsonl has 13 texts
    assert results["run"]["trained_parameters"] == [f"model.layers.{i}.{name}" for i in LAYERS]
    exported, original = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
        for folder in (out / "model", base)
    )
    theirs = dict(updated.named_parameters())
    assert farthest(theirs, original) > 1e-4
    assert farthest(theirs, exported) <= 1e-6


def shortened(texts: list[str]) -> list[str]:
    """Their first 8 to 20 words: products in bf16 take their time on a CPU."""
    return [" ".join(text.split()[: 8 + n % 13]) for n, text in enumerate(texts)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_real_model(dtype: torch.dtype, tmp_path: Path) -> None:
    """SmolLM2, atlas's two topics, six steps of padded texts: within 1e-6 in fp32, the same bits in bf16."""
    from transformers import AutoModelForCausalLM

    from rmu_exp.model.gguf import PACKAGES, from_gguf

    texts = {name: shortened(atlas.texts(name)) for name in ("elements", "capitals", "retain")}
    files = {name: tmp_path / f"{name}.txt" for name in texts}
    for name, file in files.items():
        file.write_text("\n".join(texts[name]))
    name, out = str(dtype).removeprefix("torch."), tmp_path / "run"
    words = f"""layer=7 steering=absolute steer=6.5 alpha=1200 method.faithful=true train.lr=5e-5 train.max_batches=6
        data=local data.forget=[{files["elements"]},{files["capitals"]}] data.retain=[{files["retain"]}]
        data.max_length=512 seed=42 model.dtype={name} eval=none tracking=off export=true output={out}""".split()
    (run,) = compose.composed(words, a_run.CONF)
    execute(run, out)
    base = from_gguf(PACKAGES["smollm2_135m"].file())
    forget, retain = [texts["elements"], texts["capitals"]], [texts["retain"], texts["retain"]]
    updated, steps = published_loop(base, forget, retain, down, 6, dtype)
    assert steps == 6
    theirs, original, exported = (
        {
            n: p
            for n, p in model.named_parameters()
            if any(n == f"model.layers.{i}.mlp.down_proj.weight" for i in LAYERS)
        }
        for model in (
            updated,
            *(AutoModelForCausalLM.from_pretrained(f, dtype=dtype) for f in (base, out / "model")),
        )
    )
    assert farthest(theirs, original) >= 1e-4
    assert farthest(theirs, exported) <= (1e-6 if dtype == torch.float32 else 0)


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - value).detach().abs().max()) for name, value in other.items())
