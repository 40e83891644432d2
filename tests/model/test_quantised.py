"""Quantised checkpoints become checkpoint folders: equal to their formats' definitions, number by number; made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import a_run
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from rmu_exp.cli import compose
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.quantised import NOTE
from rmu_exp.pipeline import run as pipeline
from rmu_exp.record import results
from rmu_exp.support.errors import UserError

HIDDEN, GROUP, BITS = 64, 32, 4
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def numbers(rows: int, columns: int, top: int, seed: int) -> torch.Tensor:
    return torch.randint(0, top, (rows, columns), generator=torch.Generator().manual_seed(seed))


def scales(*shape: int, seed: int = 3) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02 + 0.01).half()


def word(values: list[int]) -> int:
    """Four-bit numbers in an int32, the first lowest."""
    whole = sum(value << (BITS * place) for place, value in enumerate(values))
    return whole - 2**32 if whole >= 2**31 else whole


def signed(value: int) -> int:
    """An integer modulo 2³² as int32 holds it."""
    return (value + 2**31) % 2**32 - 2**31


def gptq(outs: int, ins: int, form: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    q, z, s = numbers(ins, outs, 16, 1), numbers(ins // GROUP, outs, 15, 2), scales(ins // GROUP, outs)
    g = torch.randperm(ins, generator=torch.Generator().manual_seed(4)) // GROUP  # as with desc_act
    less = 0 if form == "gptq_v2" else 0x11111111  # of the whole word, so that a zero of 0 borrows from the next
    rows = [[word(q[8 * r : 8 * r + 8, o].tolist()) for o in range(outs)] for r in range(ins // 8)]
    zeros = [[signed(word(z[k, 8 * c : 8 * c + 8].tolist()) - less) for c in range(outs // 8)] for k in range(len(z))]
    weight = [[float(s[g[i], o]) * (int(q[i, o]) - int(z[g[i], o])) for i in range(ins)] for o in range(outs)]
    packed = {"qweight": torch.tensor(rows, dtype=torch.int32), "qzeros": torch.tensor(zeros, dtype=torch.int32)}
    return packed | {"scales": s, "g_idx": g.int()}, torch.tensor(weight)


def awq(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    q, z, s = numbers(ins, outs, 16, 1), numbers(ins // GROUP, outs, 16, 2), scales(ins // GROUP, outs)

    def packed(values: torch.Tensor) -> torch.Tensor:
        rows = [[word([int(row[8 * c + k]) for k in AWQ]) for c in range(outs // 8)] for row in values]
        return torch.tensor(rows, dtype=torch.int32)

    weight = [[float(s[i // GROUP, o]) * int(q[i, o] - z[i // GROUP, o]) for i in range(ins)] for o in range(outs)]
    return {"qweight": packed(q), "qzeros": packed(z), "scales": s}, torch.tensor(weight)


def fp8(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w = torch.randn(outs, ins, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    s = scales(-(-outs // 48), -(-ins // 48)).float()
    weight = [[float(w[o, i]) * float(s[o // 48, i // 48]) for i in range(ins)] for o in range(outs)]
    return {"weight": w, "weight_scale_inv": s}, torch.tensor(weight)


def int8(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """compressed-tensors, a scale and a zero for each output."""
    w, s, z = (numbers(outs, ins, 255, 1) - 127).to(torch.int8), scales(outs, 1), numbers(outs, 1, 9, 5).to(torch.int8)
    weight = [[float(s[o, 0]) * (int(w[o, i]) - int(z[o, 0])) for i in range(ins)] for o in range(outs)]
    return {"weight": w, "weight_scale": s, "weight_zero_point": z}, torch.tensor(weight)


def packed(
    outs: int, ins: int, zeros: bool = False, ordered: bool = False
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """compressed-tensors, four bits in words, with groups in another order or with zeros."""
    q, s, z = numbers(outs, ins, 16, 1) - 8, scales(outs, ins // GROUP), numbers(outs, ins // GROUP, 16, 5) - 8
    g = torch.arange(ins) // GROUP
    rows = [[word((q[o, 8 * c : 8 * c + 8] + 8).tolist()) for c in range(ins // 8)] for o in range(outs)]
    own = {"weight_packed": torch.tensor(rows, dtype=torch.int32), "weight_shape": torch.tensor([outs, ins])}
    if zeros:
        below = [[word((z[8 * r : 8 * r + 8, k] + 8).tolist()) for k in range(z.shape[1])] for r in range(outs // 8)]
        own |= {"weight_zero_point": torch.tensor(below, dtype=torch.int32)}
    else:
        g, z = (
            (g if ordered else g[torch.randperm(ins, generator=torch.Generator().manual_seed(4))]),
            torch.zeros_like(z),
        )
        own |= {"weight_g_idx": torch.full((ins,), -1, dtype=torch.int32) if ordered else g.int()}
    weight = [[float(s[o, g[i]]) * (int(q[o, i]) - int(z[o, g[i]])) for i in range(ins)] for o in range(outs)]
    return own | {"weight_scale": s}, torch.tensor(weight)


def llm_int8(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w, c = (numbers(outs, ins, 255, 1) - 127).to(torch.int8), scales(outs).float()
    weight = [[int(w[o, i]) * float(c[o]) / 127 for i in range(ins)] for o in range(outs)]
    return {"weight": w, "SCB": c, "weight_format": torch.tensor(0, dtype=torch.uint8)}, torch.tensor(weight)


def nf4(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """bitsandbytes' four bits, with scales that are quantised themselves (double quantisation)."""
    count = outs * ins
    q, a, code = numbers(1, count, 16, 1)[0], numbers(1, count // 64, 256, 2)[0], torch.linspace(-1, 1, 16)
    outer, map_of_scales = scales(-(-len(a) // 256)).float(), torch.linspace(-1, 1, 256)
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [outs, ins]}
    about |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
    scale = [float(map_of_scales[a[b]]) * float(outer[b // 256]) + 0.25 for b in range(len(a))]
    weight = torch.tensor([float(code[q[j]]) * scale[j // 64] for j in range(count)]).view(outs, ins)
    own = {"weight": (q[0::2] * 16 + q[1::2]).to(torch.uint8)[:, None], "weight.quant_map": code}
    own |= {"weight.absmax": a.to(torch.uint8), "weight.nested_absmax": outer, "weight.nested_quant_map": map_of_scales}
    state = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    return own | {"weight.quant_state.bitsandbytes__nf4": state}, weight


def nf4_in_bf16(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same bytes, kept as numbers of another dtype, as FSDP wants them."""
    own, weight = nf4(outs, ins)
    return own | {"weight": own["weight"].view(-1, 2).view(torch.bfloat16)}, weight


WAYS = {
    "gptq": (lambda o, i: gptq(o, i, "gptq"), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq_v2": (
        lambda o, i: gptq(o, i, "gptq_v2"),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [48, 48]}),
    "int8": (int8, {"quant_method": "compressed-tensors", "format": "int-quantized"}),
    "packed": (packed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "packed_in_order": (
        lambda o, i: packed(o, i, ordered=True),
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ),
    "packed_with_zeros": (
        lambda o, i: packed(o, i, zeros=True),
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ),
    "llm_int8": (llm_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4_in_bf16": (nf4_in_bf16, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def quantised(folder: Path, way: str, **more: object) -> dict[str, torch.Tensor]:
    """Quantise the MLPs of a tiny checkpoint; gives what they are in truth, by name."""
    tiny.mistral(folder, layers=4, hidden=HIDDEN)
    make, settings = WAYS[way]
    tensors, truth = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if ".mlp." in name]:
        own, truth[name] = make(*tensors.pop(name).shape)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": value.contiguous() for part, value in own.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": settings | more}
    (folder / "config.json").write_text(json.dumps(config))
    return truth


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("way", WAYS)
def test_what_was_quantised_is_what_its_numbers_say(tmp_path, way):
    truth = quantised(tmp_path / "q", way)
    found = locate(None, str(tmp_path / "q"))
    assert found.made_from["quantised_by"] == WAYS[way][1]["quant_method"]
    assert "quantization_config" not in json.loads((found.folder / "config.json").read_text())
    parameters = dict(found.open(None, torch.float32, torch.device("cpu")).named_parameters())
    for name, value in truth.items():
        assert torch.equal(parameters[name], value.half().float()), name
    before = (found.folder / NOTE).stat().st_mtime_ns
    again = locate(None, str(tmp_path / "q"))
    assert again.folder == found.folder
    assert (again.folder / NOTE).stat().st_mtime_ns == before


def test_the_experts_of_gpt_oss_are_read_from_mxfp4(tmp_path):
    """As the format says, as transformers converts them, and as a model of that architecture takes them."""
    from transformers import GptOssConfig, GptOssForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = GptOssConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=64, layer_types=["full_attention"] * 2,
    )  # fmt: skip
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "q")
    tensors, truth = load_file(tmp_path / "q/model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("_proj") and ".experts." in name]:
        experts, ins, outs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outs, ins // 32, 16), generator=generator, dtype=torch.uint8)
        exponents = torch.randint(118, 130, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        truth[name] = convert_moe_packed_tensors(blocks.clone(), exponents.clone())
        code = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
        byte, scale = int(blocks[3, 5, 1, 7]), 2.0 ** (int(exponents[3, 5, 1]) - 127)
        for at, half in ((46, byte % 16), (47, byte // 16)):
            assert truth[name][3, at, 5] == (-1 if half >= 8 else 1) * code[half % 8] * scale
    assert len(truth) == 4
    save_file(tensors, tmp_path / "q/model.safetensors", {"format": "pt"})
    raw = json.loads((tmp_path / "q/config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    raw.pop("dtype")  # the published ones say none
    (tmp_path / "q/config.json").write_text(json.dumps(raw))
    found = locate(None, str(tmp_path / "q"))
    made = load_file(found.folder / "model.safetensors")
    assert {value.dtype for value in made.values()} == {torch.bfloat16}
    assert made.keys() == {name.removesuffix("_blocks") for name in tensors if not name.endswith("_scales")}
    parameters = dict(found.open(None, torch.float32, torch.device("cpu")).named_parameters())
    for name, value in truth.items():
        assert torch.equal(parameters[name], value.float()), name


@pytest.mark.parametrize(
    ("way", "more", "line"),
    [
        ("gptq", {"quant_method": "hqq"}, "is quantised by hqq, bits 4, which is not dequantised here"),
        ("gptq", {"bits": 3}, "is quantised by gptq, bits 3, which"),
        ("awq", {"version": "gemv"}, "is quantised by awq, bits 4, version gemv, which"),
        ("awq", {"quant_method": "bitsandbytes"}, None),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(tmp_path, way, more, line):
    quantised(tmp_path / "q", way, **more)
    if line is None:  # nothing is marked as quantised in this way, so the integers cannot be the model's
        with pytest.raises(UserError):
            locate(None, str(tmp_path / "q")).open(None, torch.float32, torch.device("cpu"))
        return
    with pytest.raises(UserError, match=line):
        locate(None, str(tmp_path / "q"))
    assert not (tmp_path / "cache/dequantised").exists()


def test_a_missing_part_is_refused_in_one_line(tmp_path):
    quantised(tmp_path / "q", "gptq")
    tensors = load_file(tmp_path / "q/model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "q/model.safetensors")
    with pytest.raises(UserError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.scales, which gptq needs"):
        locate(None, str(tmp_path / "q"))
    assert not list((tmp_path / "cache/dequantised").glob("[!.]*/config.json"))


@pytest.mark.parametrize("more", [{"bits": 8}, {"bits": 2}])
def test_one_that_is_not_what_it_says_is_refused_in_one_line(tmp_path, more):
    quantised(tmp_path / "q", "gptq", **more)
    with pytest.raises(UserError, match=r"is not as gptq writes it \(.*\); give the checkpoint that it was made from"):
        locate(None, str(tmp_path / "q"))


def test_a_large_one_is_written_in_several_files(tmp_path, monkeypatch):
    quantised(tmp_path / "q", "awq")
    whole = load_file(locate(None, str(tmp_path / "q")).folder / "model.safetensors")
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("rmu_exp.model.quantised.SHARD", 20_000)
    found = locate(None, str(tmp_path / "q"))
    assert len(found.weight_files()) > 2
    parts = {name: value for file in found.weight_files() for name, value in load_file(file).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_one_is_unlearned_from_exported_and_judged(tmp_path):
    words = a_run.words(tmp_path)
    shutil.rmtree(tmp_path / "model")
    quantised(tmp_path / "model", "gptq")
    a_run.carry_out([*words, "export=true"], tmp_path / "run")
    found = results.load(tmp_path / "run/results.json")
    assert found.provenance.model_file["quantised_by"] == "gptq"
    exported = load_file(tmp_path / "run/model/model.safetensors")
    assert exported["model.layers.0.mlp.down_proj.weight"].dtype == torch.float16
    assert not [name for name in exported if "qweight" in name]
    words = [f"unlearned={tmp_path / 'model'}", f"base={tmp_path / 'run/model'}", "tracking=off", "data=local"]
    words += ["eval.tasks=[lore_general]", "eval.limit=4", f"output={tmp_path / 'judged'}"]
    (judge,) = compose.composed(words, a_run.CONF, "judge")
    pipeline.execute(judge, tmp_path / "judged")
    assert results.load(tmp_path / "judged/results.json").qa["lore_general"].unlearned.n == 16
