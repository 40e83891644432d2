"""Every causal architecture that the installed transformers lists, tiny and random: run, Delta, export, reload."""

from __future__ import annotations

from pathlib import Path

import a_run
import architectures
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import DOWN, MIXED, down_projection
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.pipeline import run as pipeline
from rmu_exp.support.errors import UserError

QUICK = (
    "bloom",
    "mamba2",
    "jamba",
    "bart",
    "qwen3_5_text",
    "gemma3",
    "minicpm3",
    "nanochat",
)  # one of each kind of difficulty
REFUSED = architectures.REFUSED
IDS = torch.tensor([[4, 5, 6]])


def words(base: Path, folder: Path) -> list[str]:
    """The command line of a run of three steps at layer 2."""
    (folder / "forget.txt").write_text("w1 w2 w3\nw4 w5\n" * 6)
    (folder / "retain.txt").write_text("".join(f"w2 w{i} w{i % 7}\nw{i} w3\n" for i in range(8)))
    given = f"model=local model.path={base} data=local data.forget=[{folder}/forget.txt] layer=2 steer=30 alpha=1"
    return f"{given} data.retain=[{folder}/retain.txt] train.lr=1e-2 train.max_batches=3 eval=none tracking=off".split()


def carry_through(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A run, whose export is loaded by transformers alone: it is the unlearned model, and differs from its base."""
    patch.setattr(pipeline, "report", lambda *_: None)  # pictures take most of the time
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # some look there for kernels
    base, out = architectures.make(kind, folder / "base"), folder / "out"
    a_run.carry_out([*words(base, folder), "export=true"], out)
    delta = Delta.load(out / "delta.safetensors")
    before, after = (
        {name: value for file in d.glob("*.safetensors") for name, value in load_file(file).items()}
        for d in (base, out / "model")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], delta.tensors.get(name, before[name])) for name in before)
    original, exported = (AutoModelForCausalLM.from_pretrained(d).eval() for d in (base, out / "model"))
    checkpoint = locate(None, str(base))
    unlearned, cut = (checkpoint.open(depth, torch.float32, torch.device("cpu")) for depth in (None, 3))
    assert torch.equal(logits(unlearned), logits(original))
    whole, split = output(unlearned, 2), SplitModel(cut, 1)
    assert torch.allclose(split.upper(split.trunk(IDS), {}), whole, atol=1e-5), "two pieces are not the whole"
    delta.put(unlearned)
    mine = unlearned.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in exported.state_dict().items())
    assert torch.allclose(logits(exported), logits(unlearned), atol=1e-5)
    assert not torch.allclose(logits(exported), logits(original), atol=1e-5)
    assert torch.allclose(logits(exported, IDS[:, :2]), logits(exported)[:, :2], atol=1e-4), "it sees what follows"


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids, use_cache=False).logits


@torch.no_grad()
def output(model: nn.Module, layer: int) -> Tensor:
    """What a layer gives in the model as it is."""
    seen = []
    hook = layers_of(model)[layer].register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    model(IDS, use_cache=False)
    hook.remove()
    return seen[0] if isinstance(seen[0], Tensor) else seen[0][0]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in architectures.names()
        if kind not in architectures.REFUSED
    ],
)
def test_it_is_unlearned_exported_and_loaded_again(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    carry_through(kind, tmp_path, monkeypatch)


MADE = [kind for kind in REFUSED if kind != "gemma4_assistant"]  # whose default configuration transformers refuses


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "cpmant" else pytest.mark.slow) for k in MADE])
def test_what_cannot_work_is_refused_before_anything_is_written(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    base = architectures.empty(kind, tmp_path / "base")
    with pytest.raises(UserError) as told:
        a_run.carry_out(words(base, tmp_path), tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "out").iterdir())


def test_an_encoder_is_refused(tmp_path):
    base = architectures.make("bert", tmp_path / "base", is_decoder=False)
    with pytest.raises(UserError, match=r"the attention of .* \(BertLMHeadModel\) is not causal by itself"):
        a_run.carry_out(words(base, tmp_path), tmp_path / "out")


def test_attention_in_blocks_is_refused(tmp_path):
    base = architectures.make("big_bird", tmp_path / "base", attention_type="block_sparse")
    with pytest.raises(UserError, match=r"wants whole blocks; set attention_type: original_full"):
        a_run.carry_out(words(base, tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_nine_in_ten_run_and_the_page_lists_the_others():
    listed = architectures.names()
    assert set(architectures.NO_WORDS) <= set(REFUSED) <= set(listed)
    assert len(listed) - len(REFUSED) >= 0.9 * (len(listed) - len(architectures.NO_WORDS))
    page = (a_run.CONF.parent / "docs/models.md").read_text(encoding="utf-8")
    refused = page.partition("| model type | why not |")[2].partition("\n\n")[0]
    assert [line for line in refused.splitlines() if line.startswith("| `")] == [
        f"| `{k}` | {REFUSED[k]} |" for k in REFUSED
    ]
    assert f"It covers {len(listed) - len(REFUSED)} of them" in page


@pytest.mark.slow
def test_each_name_of_an_output_matrix_is_of_some_architecture():
    """And none is there for a model that nobody lists."""
    used = set()
    for kind in architectures.names().keys() - architectures.REFUSED.keys():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architectures.small(kind))
        for layer in range(len(layers_of(model))):
            used.add(f".{down_projection(model, layer)}".removesuffix(".weight"))
    assert not [end for end in (*DOWN, *MIXED) if not any(name.endswith(f".{end}") for name in used)]
