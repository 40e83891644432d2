"""Quantised checkpoints as base models: dequantised once into the cache, as an ordinary checkpoint folder.

What is dequantised is what the checkpoint's own kernels multiply with, in the dtype of its configuration:

    gptq           W_oi = s_go · (q_io − z_go), g = g_idx_i; an int32 word holds inputs, lowest bits first
    awq            W_oi = s_go · (q_io − z_go), g = i div group; a word holds outputs, in an order of their own
    fp8            W = w · s: s one number, one for each output, or one for each block
    compressed-tensors     the same with fp8 or int8 numbers, less a zero where there is one; or with 4 or 8 bits in
                   int32 words that hold inputs, lowest bits first, as far above their least number
    mxfp4          W_oi = code[q_oi] · 2^(e_o,i div 32 − 127), the experts' as (experts, inputs, outputs)
    bitsandbytes   8 bits: W_oi = w_oi · c_o / 127; 4 bits: W_j = code[q_j] · a_(j div 64), a quantised itself or not

Everything else in the files stays as it is. Axes: I inputs, O outputs, G groups.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmu_exp.model import made_folder
from rmu_exp.model import weight_files as weights
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.memory import ran_out

NOTE = "dequantised.json"
INSTEAD = "give the checkpoint that it was made from"
SETTINGS = "quantization_config"
BESIDE = (".json", ".txt", ".model", ".jinja", ".py")  # files that are copied
VERSION = "3"  # of what is made of the same files
SHARD = 2**31  # bytes in a file, at most one tensor more
WORD = 32  # bits in which small numbers are packed
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbouring outputs stands at each place of a word
FP4 = torch.tensor([sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])  # of OCP's MX formats
BLOCK = 64  # numbers that share a scale in bitsandbytes, where the file does not say
log = logging.getLogger("rmu_exp")
FORMS: dict[str, dict[str, list[object]]] = {
    "bits": {"gptq": [2, 4, 8], "awq": [4]},
    "version": {"awq": ["gemm", "GEMM"]},
    "checkpoint_format": {"gptq": ["gptq", "gptq_v2"], "awq": ["gemm", "GEMM"]},
    "format": {
        "gptq": ["gptq", "gptq_v2"],
        "awq": ["gemm", "GEMM"],
        "compressed-tensors": ["float-quantized", "int-quantized", "naive-quantized", "pack-quantized"],
    },
}
"""Setting to the values that are known, by method."""
Parts = Mapping[str, Tensor]
"""What a module has in the files, by the last part of its name."""


def settings_of(folder: Path) -> dict[str, Any] | None:
    """How a checkpoint folder is quantised; None: it is not."""
    found: dict[str, Any] | None = weights.read_json(folder / weights.CONFIG).get(SETTINGS)
    return found


def refuse_unknown(folder: Path, where: str) -> str:
    """The method by which a folder is quantised, by its configuration. Raises UserError: it is not known here."""
    settings = settings_of(folder) or {}
    method = str(settings.get("quant_method"))
    form = {name: settings[name] for name in FORMS if settings.get(name) is not None}
    if method not in KNOWN or any(value not in FORMS[name].get(method, [value]) for name, value in form.items()):
        said = "".join(f", {name} {value}" for name, value in form.items())
        raise UserError(f"{where} is quantised by {method}{said}, which is not dequantised here; {INSTEAD}")
    return method


def dequantised(folder: Path, where: str, name: str = "") -> Path:
    """The checkpoint folder made from a quantised one: from the cache, or dequantised now.

    Args:
        where: the setting and what it names, for messages.
        name: what the note calls it; the folder's name where there is none.

    It is ``dequantised/<sha256>`` in the cache folder, with ``dequantised.json``: the folder's name and how it was
    quantised.

    Raises:
        UserError: it is quantised in a way that is not known here, or lacks a tensor; the cache may not be written to.
        RunError: it does not fit the memory or the disk.
    """
    settings = settings_of(folder) or {}
    method, wanted = refuse_unknown(folder, where), INSTEAD
    files = [*sorted(_beside(folder)), *(folder / name for name in weights.file_names(folder, where))]
    digest = hashlib.sha256(
        (VERSION + "".join(file.name + weights.file_digest(file) for file in files)).encode()
    ).hexdigest()

    def make(into: Path) -> dict[str, str]:
        log.info("%s: dequantised into the cache, once", name or folder.name)
        try:
            _write(folder, into, settings, method, where)
        except KeyError as error:
            raise UserError(f"{where} has no tensor {error.args[0]}, which {method} needs; {wanted}") from error
        except (RuntimeError, ValueError, IndexError) as error:  # what tensors of other shapes or kinds come to
            if ran_out(error):
                raise
            raise UserError(f"{where} is not as {method} writes it ({first_line(error)}); {wanted}") from error
        return {"folder": name or folder.name, "quantised_by": method}

    return made_folder.kept("dequantised", digest, NOTE, make, where)


def _write(folder: Path, into: Path, settings: dict[str, Any], method: str, where: str) -> None:
    """Write the checkpoint: dequantised weights, the configuration without its quantisation, everything beside them."""
    raw = weights.read_json(folder / weights.CONFIG)
    said = raw.get("dtype") or raw.get("torch_dtype")
    dtype = getattr(torch, str(said).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):  # it says none
        dtype = _largest_kept(folder, where)
    for file in _beside(folder):
        shutil.copyfile(file, into / file.name)
    plain = {name: value for name, value in raw.items() if name != SETTINGS}
    (into / weights.CONFIG).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    table: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(table.values())) + 1:05}.safetensors"
        save_file({name: value.contiguous() for name, value in shard.items()}, into / name, {"format": "pt"})
        table.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, value in _tensors(folder, settings, method, dtype, where):
        shard[name] = value
        if sum(t.nbytes for t in shard.values()) > SHARD:
            flush()
    if shard:
        flush()
    if len(names := set(table.values())) == 1:
        (into / names.pop()).rename(into / weights.SINGLE)
        return
    index = {"metadata": {}, "weight_map": table}
    (into / weights.INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _largest_kept(folder: Path, where: str) -> torch.dtype:
    """The dtype of the largest tensor of floats in the files, mostly an embedding; for a configuration without one."""
    entries = [e for name in weights.file_names(folder, where) for e in weights.header(folder / name).values()]
    floats = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = [entry for entry in entries if entry.dtype in floats]
    return floats[max(found, key=lambda e: e.end - e.begin).dtype] if found else torch.float16


def _beside(folder: Path) -> list[Path]:
    """The files that are copied: configuration, tokenizer, templates, code."""
    return [f for f in folder.iterdir() if f.is_file() and f.suffix in BESIDE and f.name != weights.INDEX]


def _tensors(
    folder: Path, settings: dict[str, Any], method: str, dtype: torch.dtype, where: str
) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors as they were before they were quantised, by name."""
    kind = KNOWN[method]
    files = {name: file for file in weights.file_names(folder, where) for name in weights.header(folder / file)}

    def read(name: str) -> Tensor:
        with safe_open(folder / files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    ends = tuple(kind.joint + end for end in kind.marks)
    owners = {name.removesuffix(end) for name in files for end in ends if name.endswith(end)}
    owned: dict[str, dict[str, str]] = {}  # in the files' order: owner to its parts, by the rest of their names
    for name in files:
        owner = name
        while owner and owner not in owners:
            owner = owner.rpartition(kind.joint)[0]
        part = name.removeprefix(owner + kind.joint)
        if owner and part.startswith(kind.parts):
            owned.setdefault(owner, {})[part] = name
        elif name.endswith(".scales"):
            raise KeyError(name.removesuffix("scales") + "qweight")  # these scale activations, unknown here
        else:
            yield name, read(name)
    for owner, names in owned.items():
        own = {part: read(name) for part, name in names.items()}
        yield owner + kind.made, kind.unpack(own, settings, owner).to(dtype)


def words(packed: Tensor, bits: int) -> Tensor:
    """Small numbers (…, n · 32 / bits) out of int32 words (…, n), lowest bits first."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def gptq(own: Parts, settings: Mapping[str, Any], module: str) -> Tensor:
    """W (O, I). The first form of the format holds zeros less one."""
    bits = int(settings["bits"])
    q_IO = words(_part(own, "qweight", module).mT, bits).mT
    s_GO = _part(own, "scales", module).float()
    zeros = _part(own, "qzeros", module)
    if "gptq_v2" not in (settings.get("checkpoint_format"), settings.get("format")):
        zeros = zeros + (2**WORD - 1) // (2**bits - 1)  # as it was taken off, of the whole word: a zero of 0 borrows
    z_GO = words(zeros, bits)[:, : s_GO.shape[1]]
    group = int(settings.get("group_size") or -1)
    group = group if group > 0 else len(q_IO)
    g_I = own["g_idx"].long() if "g_idx" in own else torch.arange(len(q_IO)) // group
    return (s_GO[g_I] * (q_IO - z_GO[g_I])).mT


def awq(own: Parts, settings: Mapping[str, Any], module: str) -> Tensor:
    """W (O, I)."""
    s_GO = _part(own, "scales", module).float()

    def unpacked(name: str) -> Tensor:
        n_XO = words(_part(own, name, module), WORD // len(AWQ_ORDER)).unflatten(-1, (-1, len(AWQ_ORDER)))
        return torch.empty_like(n_XO).index_copy_(-1, torch.tensor(AWQ_ORDER), n_XO).flatten(-2)

    q_IO, z_GO = unpacked("qweight"), unpacked("qzeros")
    g_I = torch.arange(len(q_IO)) // (len(q_IO) // len(s_GO))
    return (s_GO[g_I] * (q_IO - z_GO[g_I])).mT


def scaled(own: Parts, settings: Mapping[str, Any], module: str) -> Tensor:
    """W (O, I) of fp8 or int8 numbers, or those as they are where nothing scales them."""
    weight = _part(own, "weight", module).float()
    block = settings.get("weight_block_size")

    def over(name: str) -> Tensor | None:
        """A scale or a zero, as wide as what it belongs to."""
        value = own.get(name)
        if value is None:
            return None
        value = value.float().view(-1, 1) if value.dim() < 2 else value.float()
        for axis, (whole, count) in enumerate(zip(weight.shape, value.shape, strict=True)):
            if count not in (1, whole):
                size = block[axis] if block else -(-whole // count)
                value = value.repeat_interleave(size, axis).narrow(axis, 0, whole)
        return value

    scale, zero = over("weight_scale_inv" if "weight_scale_inv" in own else "weight_scale"), over("weight_zero_point")
    weight = weight if zero is None else weight - zero
    return weight if scale is None else weight * scale


def compressed(own: Parts, settings: Mapping[str, Any], module: str) -> Tensor:
    """W (O, I) of compressed-tensors: numbers of a dtype, or of 4 or 8 bits in words, with groups in any order."""
    if "weight_packed" not in own:
        return scaled(own, settings, module)
    outs, ins = _part(own, "weight_shape", module).tolist()
    packed = own["weight_packed"]
    size = next((bits for bits in (4, 8) if packed.shape == (outs, -(-ins * bits // WORD))), None)
    if size is None:
        raise ValueError(f"{module}.weight_packed has the shape {tuple(packed.shape)} for {outs} × {ins} numbers")
    least = 2 ** (size - 1)
    q_OI = words(packed, size)[:, :ins] - least
    s_OG = _part(own, "weight_scale", module).float()
    groups = s_OG.shape[1]
    if ins % groups:
        raise ValueError(f"{module}: {ins} inputs in {groups} groups of unequal size")
    g_I = own["weight_g_idx"].long() if "weight_g_idx" in own else torch.full((), -1)
    g_I = torch.arange(ins) // (ins // groups) if (g_I < 0).any() else g_I  # -1: in the columns' own order
    if "weight_zero_point" in own:
        zero = own["weight_zero_point"]
        z_OG = words(zero.mT, size).mT[:outs] - least if zero.dtype == torch.int32 else zero
        q_OI = q_OI - z_OG[:, g_I]
    return s_OG[:, g_I] * q_OI


def mxfp4(own: Parts, settings: Mapping[str, Any], name: str) -> Tensor:
    """W (experts, I, O): blocks (experts, O, I / 32, 16), two numbers in a byte, the lower half first."""
    blocks, scales = _part(own, "blocks", name), _part(own, "scales", name)
    values = FP4[torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()]
    return torch.ldexp(values, scales.int()[..., None] - 127).flatten(-2).mT


def bitsandbytes(own: Parts, settings: Mapping[str, Any], module: str) -> Tensor:
    """W (O, I) of its 8 bits (LLM.int8) or 4 bits (NF4 or FP4, with plain or quantised scales)."""
    if "SCB" in own or "weight.absmax" not in own:
        return _part(own, "weight", module).float() * _part(own, "SCB", module).float()[:, None] / 127
    state = next((name for name in own if name.startswith("weight.quant_state.")), "weight.quant_state")
    about = json.loads(bytes(_part(own, state, module).tolist()))
    packed, code = (
        own["weight"].contiguous().view(torch.uint8).flatten(),
        _part(own, "weight.quant_map", module).float(),
    )
    values = code[torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()]
    a_B = own["weight.absmax"]
    if "weight.nested_absmax" in own:
        outer = own["weight.nested_absmax"].float().repeat_interleave(int(about["nested_blocksize"]))[: len(a_B)]
        a_B = _part(own, "weight.nested_quant_map", module).float()[a_B.long()] * outer + float(about["nested_offset"])
    scales = a_B.float().repeat_interleave(int(about.get("blocksize", BLOCK)))[: len(values)]
    return (values * scales)[: torch.Size(about["shape"]).numel()].view(about["shape"])


def _part(own: Parts, name: str, module: str) -> Tensor:
    if name not in own:
        raise KeyError(f"{module}.{name}")
    return own[name]


@dataclass(frozen=True)
class Kind:
    """How a method names what it writes.

    Attributes:
        marks: parts that only quantised weights have.
        parts: beginnings of the parts that make up a weight.
        unpack: the weight, of its parts by name, the checkpoint's settings, and the owner's name.
        joint, made: what stands before a part's name, and what is put after the owner's for the weight's own.
    """

    marks: tuple[str, ...]
    parts: tuple[str, ...]
    unpack: Callable[[Parts, Mapping[str, Any], str], Tensor]
    joint: str = "."
    made: str = ".weight"


INTEGERS = ("qweight", "qzeros", "scales", "g_idx")
SCALES = ("weight", "input_scale")  # weight_scale, weight_scale_inv, …
KNOWN = {
    "gptq": Kind(("qweight",), INTEGERS, gptq),
    "awq": Kind(("qweight",), INTEGERS, awq),
    "fp8": Kind(("weight_scale_inv", "weight_scale"), SCALES, scaled),
    "compressed-tensors": Kind(("weight_scale",), SCALES, compressed),
    "bitsandbytes": Kind(("SCB", "weight.absmax"), ("weight", "SCB"), bitsandbytes),
    "mxfp4": Kind(("blocks",), ("blocks", "scales"), mxfp4, joint="_", made=""),
}
