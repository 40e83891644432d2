"""Adapters of the peft library: what merging one changes in its base model, as a Delta or as a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from rmu_exp.model.checkpoint import DTYPES, MERGED, Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export
from rmu_exp.model.parameters import on_disk
from rmu_exp.model.split import layers_of
from rmu_exp.model.weight_files import ADAPTER, CONFIG, file_digest, header, read_json
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import cache_path, write_atomic

WEIGHTS = "adapter_model.safetensors"


def is_adapter(word: str) -> bool:
    """Whether a word names a folder with an adapter and no model."""
    folder = Path(word).expanduser()
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file()


def onto(base: Checkpoint, word: str, key: str) -> Checkpoint:
    """The base with an adapter merged into it, as a checkpoint in the cache, which is made when it is not there.

    It is the base's files with the merged tensors in them, each rounded to its dtype there, and a note of both.

    Raises UserError as :func:`merged`, or where ``word`` is no adapter's folder; RunError: the disk cannot take it.
    """
    from filelock import FileLock

    if not is_adapter(word):
        raise UserError(f"{key}: got {word!r}, allowed is a folder of peft's, with {ADAPTER} and without a {CONFIG}")
    folder = Path(word).expanduser()
    own = {
        f.name: file_digest(f) for f in sorted(folder.iterdir()) if f.name == ADAPTER or f.stem == Path(WEIGHTS).stem
    }
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()
    base.fetch()
    out = cache_path() / "adapters" / hashlib.sha256(f"{base.digest()}:{digest}".encode()).hexdigest()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_suffix(".lock")):
            if not out.is_dir():
                export(base, merged(base, folder, key), out)
            if not (out / MERGED).is_file():
                made_of = {"adapter": folder.name, "adapter_sha256": digest}
                made_of |= {"base": base.name, "base_digest": base.digest()}
                write_atomic(out / MERGED, json.dumps(made_of, indent=1) + "\n")
    except OSError as error:
        where = f"merged into its base in {cache_path()}, which cannot be written to ({error.strerror})"
        raise UserError(f"{key}: {folder} is {where}; set RMU_EXP_CACHE to a folder that can") from error
    return Checkpoint(f"{base.name} + {folder.name}", out, None, base.trust_remote_code)


def merged(base: Checkpoint, folder: Path, key: str) -> Delta:
    """The tensors that differ once an adapter is merged into its base, each in its dtype on disk; merged in fp32.

    Raises:
        UserError: it does not fit the base, cannot be merged, or changes something outside of the decoder layers.
    """
    about = read_json(folder / ADAPTER)
    if saved := about.get("modules_to_save"):
        raise UserError(
            f"{key}: {folder} replaces whole modules ({', '.join(saved)}); merge it into its base model first"
        )
    said = f"{key}: the adapter in {folder} does not go onto {base.name}"
    if not_its := _other_shape(base, folder):
        raise UserError(f"{said} ({not_its}); give the base that it was trained on")
    model = base.open(None, torch.float32, torch.device("cpu"))
    places, layers = on_disk(model), layers_of(model)
    before = {name: place.read(layers[place.layer]) for name, place in places.items()}
    outside = {name: p.detach().clone() for name, p in model.named_parameters() if ".layers." not in f".{name}"}
    try:
        from peft import PeftModel

        whole = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # the library's refusals are of many kinds
        raise UserError(f"{said} ({first_line(error)}); give the base that it was trained on") from error
    layers = layers_of(whole)
    now = {name: place.view(layers[place.layer]) for name, place in places.items()}
    changed = [name for name in places if not torch.equal(now[name], before[name])]
    if any(not torch.equal(dict(whole.named_parameters())[name], value) for name, value in outside.items()):
        raise UserError(f"{key}: {folder} changes more than the decoder layers; merge it into its base model first")
    if not changed:
        raise UserError(f"{key}: the adapter in {folder} changes nothing of {base.name}; leave it out")
    dtypes = {name: DTYPES[entry.dtype] for name, (_, entry) in base.places(changed).items()}
    return Delta({name: now[name].to(dtypes[name], copy=True) for name in changed}, None, [], base.about())


def _other_shape(base: Checkpoint, folder: Path) -> str | None:
    """What of a low-rank adapter cannot be added to the base's tensor of its name, from the files' headers."""
    if not (folder / WEIGHTS).is_file():
        return None
    factors = {name.removeprefix("base_model.model."): entry.shape for name, entry in header(folder / WEIGHTS).items()}
    for name, shape in factors.items():
        module, low_rank, _ = name.partition(".lora_A.")
        other = factors.get(name.replace(".lora_A.", ".lora_B."))
        if not low_rank or other is None:
            continue
        for _, entry in base.places([f"{module}.weight"]).values():
            if {*entry.shape} != {shape[-1], other[0]}:
                return f"{module} is {list(entry.shape)} there, and {[other[0], shape[-1]]} here"
    return None
