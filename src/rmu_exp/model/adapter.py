"""Adapters of the peft library: what merging one changes in its base model, as a Delta."""

from __future__ import annotations

from pathlib import Path

import torch

from rmu_exp.model.checkpoint import DTYPES, Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import on_disk
from rmu_exp.model.split import layers_of
from rmu_exp.model.weight_files import ADAPTER, CONFIG, read_json
from rmu_exp.support.errors import UserError, first_line


def is_adapter(word: str) -> bool:
    """Whether a word names a folder with an adapter and no model."""
    folder = Path(word).expanduser()
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file()


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
    model = base.open(None, torch.float32, torch.device("cpu"))
    places, layers = on_disk(model), layers_of(model)
    before = {name: place.read(layers[place.layer]) for name, place in places.items()}
    outside = {name: p.detach().clone() for name, p in model.named_parameters() if ".layers." not in f".{name}"}
    try:
        from peft import PeftModel

        whole = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # the library's refusals are of many kinds
        said = f"the adapter in {folder} does not go onto {base.name}"
        raise UserError(f"{key}: {said} ({first_line(error)}); give the base that it was trained on") from error
    layers = layers_of(whole)
    now = {name: place.view(layers[place.layer]) for name, place in places.items()}
    changed = [name for name in places if not torch.equal(now[name], before[name])]
    if any(not torch.equal(dict(whole.named_parameters())[name], value) for name, value in outside.items()):
        raise UserError(
            f"{key}: {folder} changes more than the decoder layers; only changes inside of them can be judged"
        )
    if not changed:
        raise UserError(f"{key}: the adapter in {folder} changes nothing of {base.name}; there is nothing to judge")
    dtypes = {name: DTYPES[entry.dtype] for name, (_, entry) in base.places(changed).items()}
    return Delta({name: now[name].to(dtypes[name], copy=True) for name in changed}, None, [], base.about())
