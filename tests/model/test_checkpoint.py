"""Opening as deep as asked, quietly, and refusing in one line what cannot be opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_checkpoint, save_tokenizer

from rmu_exp.model import weight_files
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

CPU = torch.device("cpu")
IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def copy(mistral, tmp_path):
    """A folder of one's own to break."""
    return Path(shutil.copytree(mistral.folder, tmp_path / "copy"))


def refused(folder: Path, match: str, **options):
    with pytest.raises(UserError, match=match) as error:
        locate(None, str(folder), **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("model.path: ", str(folder)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_few_layers_equal_the_full_model_bit_for_bit(checkpoint, side):
    full = checkpoint.open(None, torch.float32, CPU)
    mask = torch.ones_like(IDS)
    mask[0, slice(0, 3) if side == "left" else slice(4, 7)] = 0
    for depth in (1, 3):
        few, kept = checkpoint.open(depth, torch.float32, CPU), []
        assert len(layers_of(few)) == depth
        hook = layers_of(full)[depth - 1].register_forward_hook(lambda _module, _args, out, kept=kept: kept.append(out))
        full(IDS, attention_mask=mask)
        hook.remove()
        assert torch.equal(few(IDS, attention_mask=mask).last_hidden_state, kept[0])


def test_all_layers_without_head(mistral):
    assert len(layers_of(mistral.open(mistral.depth, torch.float32, CPU))) == 4


def test_opened_models_are_for_use_only(checkpoint):
    for depth, dtype in ((2, torch.bfloat16), (None, torch.float32)):
        model = checkpoint.open(depth, dtype, CPU)
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_nothing_is_printed(checkpoint, capfd, recwarn):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    checkpoint.open(2, torch.float32, CPU)
    checkpoint.open(None, torch.float32, CPU)
    checkpoint.tokenizer()
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "transformers" in w.filename]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_only_the_files_of_the_lower_layers_are_read(checkpoint, tmp_path):
    few = Checkpoint("copy", Path(shutil.copytree(checkpoint.folder, tmp_path / "copy")))
    table = weight_files.weight_map(few.folder)
    lower = set(weight_files.needed(table, 1).values())
    removed = set(table.values()) - lower
    assert removed
    for name in removed:
        (few.folder / name).unlink()
    assert torch.equal(
        few.open(1, torch.float32, CPU)(IDS).last_hidden_state,
        checkpoint.open(1, torch.float32, CPU)(IDS).last_hidden_state,
    )


def test_a_single_file_opens_too(tmp_path, mistral):
    single = locate(None, str(make_checkpoint("mistral", tmp_path)))
    assert [file.name for file in single.weight_files()] == ["model.safetensors"]
    for depth in (2, None):
        one, many = (c.open(depth, torch.float32, CPU).state_dict() for c in (single, mistral))
        assert all(torch.equal(one[name], many[name]) for name in many)


def test_sizes_and_dtype_come_from_the_files(checkpoint, tmp_path):
    assert (checkpoint.depth, checkpoint.hidden_size, checkpoint.dtype) == (4, 16, torch.float32)
    half = locate(None, str(make_checkpoint("gpt2", tmp_path, dtype=torch.bfloat16, layers=2)))
    assert (half.depth, half.dtype, half.config.num_hidden_layers) == (2, torch.bfloat16, 2)


def test_tokenizer_pads_with_eos(mistral, copy):
    tokenizer = mistral.tokenizer()
    assert (tokenizer.pad_token_id, tokenizer("w0 w1")["input_ids"]) == (2, [3, 4])
    save_tokenizer(copy, unk_token="<unk>", pad_token="w5")
    assert locate(None, str(copy)).tokenizer().pad_token_id == 8
    save_tokenizer(copy, unk_token="<unk>", eos_token="</s>", pad_token="[PAD]")  # id 63, beyond the embedding
    assert locate(None, str(copy)).tokenizer().pad_token_id == 2
    save_tokenizer(copy, unk_token="<unk>")
    with pytest.raises(UserError, match="neither a pad nor an eos token"):
        locate(None, str(copy)).tokenizer()


def test_a_missing_tokenizer_is_told_in_one_line(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer; copy"):
        locate(None, str(copy)).tokenizer()
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="transformers cannot load its tokenizer") as error:
        locate(None, str(copy)).tokenizer()
    assert "\n" not in str(error.value)


def test_digest_follows_the_content(mistral, copy):
    checkpoint = locate(None, str(copy))
    assert checkpoint.digest() == mistral.digest()
    assert checkpoint.digest().startswith("sha256:")
    file = checkpoint.weight_files()[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert checkpoint.digest() != mistral.digest()


def test_digest_reads_a_file_once(copy, monkeypatch):
    checkpoint = locate(None, str(copy))
    first = checkpoint.digest()
    monkeypatch.setattr(weight_files.hashlib, "file_digest", None)
    assert checkpoint.digest() == first


def test_home_is_understood(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert locate(None, "~/copy").folder == copy


def test_folders_that_are_no_checkpoints(copy, tmp_path):
    refused(tmp_path / "nowhere", "nowhere is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"has no config\.json")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "empty", "adapter: merge it")
    for file in (*copy.glob("*.safetensors"), copy / weight_files.INDEX):
        file.unlink()
    refused(copy, r"has no model\.safetensors and no .*; give")
    (copy / "pytorch_model.bin").write_bytes(b"")
    refused(copy, "only pickled weights, which are never loaded")


def test_neither_name_nor_path():
    with pytest.raises(UserError, match=r"model\.name: not given"):
        locate(None, None)


def test_damaged_files_are_named(mistral, copy):
    index, shard = copy / weight_files.INDEX, sorted(copy.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for damaged in (
        whole[:-1],
        whole + b"x",
        whole[:5],
        b"",
        b"\xff" * 64,
        whole.replace(b"data_offsets", b"data_offsetz"),
    ):
        shard.write_bytes(damaged)
        refused(copy, rf"{shard.name}: damaged or cut off")
    shard.unlink()
    refused(copy, rf"{shard.name} is named in {weight_files.INDEX} but missing")
    shard.write_bytes(whole)
    table = json.loads(index.read_text())
    for content in ("{", "[]", "{}", json.dumps({"weight_map": {"a": 1}})):
        index.write_text(content)
        refused(copy, weight_files.INDEX)
    index.write_text(json.dumps({"weight_map": table["weight_map"] | {"a": "../other.safetensors"}}))
    refused(copy, "outside its folder")


def edit_config(folder: Path, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_unusable_configurations(copy):
    (copy / "config.json").write_text("{")
    refused(copy, r"config\.json: not readable as JSON")
    (copy / "config.json").write_text(json.dumps({"model_type": "mistral", "quantization_config": {}}))
    refused(copy, "quantised")


def test_an_unknown_architecture_is_told_in_one_line(copy):
    edit_config(copy, model_type="nobody_knows", architectures=["NobodyKnows"])
    for depth in (None, 2):
        with pytest.raises(UserError, match=r"transformers cannot load its .*nobody_knows") as error:
            locate(None, str(copy)).open(depth, torch.float32, CPU)
        assert "\n" not in str(error.value)


def test_remote_code_needs_permission(copy):
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Model"})
    (copy / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
        locate(None, str(copy)).open(2, torch.float32, CPU)


def test_weights_that_do_not_fit_the_configuration(copy):
    edit_config(copy, intermediate_size=32)
    with pytest.raises(UserError, match=r"do not fit its config\.json: .*mlp\.down_proj\.weight \(.* and \d+ more"):
        locate(None, str(copy)).open(2, torch.float32, CPU)


def test_weights_that_are_lacking_are_never_made_up(copy):
    edit_config(copy, num_hidden_layers=6, layer_types=None)
    for depth in (None, 5):
        with pytest.raises(UserError, match=r"its weights lack .*layers\.4\."):
            locate(None, str(copy)).open(depth, torch.float32, CPU)


def test_every_family_is_cut_as_its_layers_differ(checkpoint_of):
    """The tiny models do have layers of both kinds, without which the cut would not be tested."""
    kinds = {family: set(getattr(checkpoint_of(family).config, "layer_types", None) or []) for family in FAMILIES}
    assert {family for family, own in kinds.items() if len(own) == 2} >= {"qwen2", "gemma2", "gemma3_text"}
