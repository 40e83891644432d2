"""What a method needs of a model is refused before anything is loaded or written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from families import make_checkpoint
from safetensors.torch import load_file, save_file

from rmu_exp.cli import compose
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.run import prepare
from rmu_exp.pipeline.train import TrainPlan
from rmu_exp.support.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Checkpoint, "open", refuse)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "a.txt"
    file.write_text("\n".join(tiny.texts(20, 0)))
    return file


def preflight(folder: Path, model: Path, texts: Path, *words: str) -> TrainPlan:
    given = [f"model.path={model}", f"data.forget=[{texts}]", f"data.retain=[{texts}]", "layer=2", "steer=1", "alpha=1"]
    (run,) = compose.composed(["model=local", "data=local", "tracking=off", *given, f"output={folder}", *words], CONF)
    source = prepare(run, folder).source
    assert isinstance(source, TrainPlan)
    return source


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ("train.sam=0.1", "ssd"),
        ("train.sign_mask=true", "repselect"),
        ("train.folds=2", "repselect"),
        ("train.sam=0.1", "undo"),
    ],
)
def test_some_methods_take_no_steps_to_wrap(tmp_path, texts, words, method, monkeypatch):
    """``undo``, whose teacher does not matter here, has no loss on forget texts."""
    monkeypatch.setattr("rmu_exp.unlearning.methods.undo.Method.refuse_tensors", lambda *args: None)
    model = make_checkpoint("mistral", tmp_path / "model")
    with pytest.raises(
        UserError, match=rf"^{words.split('=')[0]}: {method} takes no steps down a loss on forget texts"
    ):
        preflight(tmp_path / "run", model, texts, f"method={method}", "train.batch_size=2", words)


def test_undo_takes_steps_with_any_optimizer(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("rmu_exp.unlearning.methods.undo.Method.refuse_tensors", lambda *args: None)
    monkeypatch.setattr("rmu_exp.unlearning.optimizers.refuse", lambda *args: None)  # bitsandbytes may not be there
    model = make_checkpoint("mistral", tmp_path / "model")
    words = ["method=undo", "train.batch_size=2", "train.optimizer=adamw_8bit", "eval=none"]
    assert preflight(tmp_path / "run", model, texts, *words).method.at_once


@pytest.mark.parametrize("name", ["npo", "rmu_lat", "ssd"])
def test_logits_without_a_head(tmp_path, texts, name):
    headless = make_checkpoint("mistral", tmp_path / "headless", head=False)
    preflight(tmp_path / "run", headless, texts, "train.batch_size=2")  # RMU needs none
    with pytest.raises(UserError, match=f"method: {name} needs logits, but .*headless has no language-model head"):
        preflight(tmp_path / "run", headless, texts, f"method={name}")
    assert not (tmp_path / "run").exists()


def test_undos_teacher(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    given = ["method=undo", "train.batch_size=2", f"method.teacher={tmp_path}"]
    with pytest.raises(UserError, match=r"^method\.teacher: not given; add method\.teacher=FOLDER"):
        preflight(tmp_path / "run", model, texts, *given[:2])
    with pytest.raises(UserError, match=r"delta\.safetensors: no such file"):
        preflight(tmp_path / "run", model, texts, *given)
    base = Checkpoint("model", model)
    name = "model.layers.1.mlp.down_proj.weight"
    Delta({name: load_file(model / "model.safetensors")[name]}, base=base.about()).save(tmp_path / "delta.safetensors")
    preflight(tmp_path / "run", model, texts, *given)
    with pytest.raises(UserError, match=rf"^method\.teacher: it changed {name}, which is not trained here"):
        preflight(tmp_path / "run", model, texts, *given, "layers.span=1")
    with pytest.raises(UserError, match=r"^layers\.lora: undo changes the tensors themselves; use layers=all$"):
        preflight(tmp_path / "run", model, texts, *given, "layers=lora")
    Delta({name: torch.zeros(1)}, base={"digest": "other"}).save(tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match=r"^method\.teacher: this Delta was made for another model"):
        preflight(tmp_path / "run", model, texts, *given)


def test_a_head_tied_to_the_embedding_is_one(tmp_path, texts):
    tied = make_checkpoint("gpt2", tmp_path / "tied", head=False)
    preflight(tmp_path / "run", tied, texts, "method=npo", "train.batch_size=2")


def test_layers_that_are_not_there(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    with pytest.raises(UserError, match=r"method: rr looks at layers \[-8, 2\], .*model has 4 layers"):
        preflight(tmp_path / "run", model, texts, "method=rr", "train.batch_size=2")


def test_a_shift_below_what_the_trained_layers_read(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    words = ["method=rmu_lat", "layers.span=2", "train.batch_size=2"]
    for below in (0, 1, 2):
        preflight(tmp_path / "run", model, texts, *words, f"method.below={below}")
    with pytest.raises(UserError) as caught:
        preflight(tmp_path / "run", model, texts, *words, "method.below=3")
    assert str(caught.value) == "method.below: got 3, allowed is 0 to 2 (layer is 2, the lowest trained layer 1)"
    preflight(tmp_path / "run", model, texts, *words, "layers.span=3", "method.below=3")  # the embeddings
    assert not (tmp_path / "run").exists()


def test_relative_steer_without_a_step_for_each_topic(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    other = shutil.copy(texts, texts.with_name("other.txt"))
    words = ["steering=relative", f"data.forget=[{texts},{other}]", "train.batch_size=2"]
    preflight(tmp_path / "run", model, texts, *words, "train.max_batches=2")
    with pytest.raises(
        UserError, match=r"^steering\.kind: relative takes a step of each of the 2 topics, .* give 1; .*$"
    ):
        preflight(tmp_path / "run", model, texts, *words, "train.max_batches=1")
    assert not (tmp_path / "run").exists()


def test_ssd_needs_a_step_for_each_half(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    preflight(tmp_path / "run", model, texts, "method=ssd", "train.batch_size=2", "train.max_batches=2")
    with pytest.raises(UserError, match=r"^train\.max_batches: got 1, ssd needs 2 or more"):
        preflight(tmp_path / "run", model, texts, "method=ssd", "train.batch_size=2", "train.max_batches=1")


@pytest.mark.parametrize("name", ["ssd", "repselect", "cir"])
def test_methods_that_have_nothing_to_train_an_adapter_by(tmp_path, texts, name):
    model = make_checkpoint("mistral", tmp_path / "model")
    words = [f"method={name}", "layer=2", "train.batch_size=2", "train.max_batches=60"]
    words += ["method.mlps=2"] if name == "cir" else []
    preflight(tmp_path / "run", model, texts, *words)
    with pytest.raises(UserError, match=f"^layers.lora: {name} changes the tensors themselves; use layers=all$"):
        preflight(tmp_path / "run", model, texts, *words, "layers.lora=true")


def test_collapsed_gradients_need_matrices_of_their_own(tmp_path, texts):
    words = ["method=cir", "layer=2", "method.mlps=2", "train.batch_size=2", "train.max_batches=60"]
    with pytest.raises(UserError, match=r"^layers\.parameters: .*experts.* is part of a fused tensor"):
        preflight(tmp_path / "run", make_checkpoint("mixtral", tmp_path / "model"), texts, *words)
    preflight(tmp_path / "run", tmp_path / "model", texts, "method=repselect", *words[3:])


def test_only_as_deep_as_the_method_needs(tmp_path, texts):
    model = make_checkpoint("mistral", tmp_path / "model")
    depth = {
        words: preflight(tmp_path / "run", model, texts, "train.batch_size=2", *words).depth
        for words in [
            ("method=rmu",),
            ("method=multi_layer", "method.offsets=[-1]"),
            ("method=multi_layer", "method.offsets=[0,1]"),
            ("method=npo",),
        ]
    }
    assert list(depth.values()) == [3, 2, 4, 4]
    words = ["train.batch_size=2", "method=multi_layer", "method.offsets=[-1,1]"]
    plan = preflight(tmp_path / "run", model, texts, *words)
    assert {t.layer for t in plan.trained} == {0, 1, 2, 3}, "span 3 below each"


def test_a_trained_tensor_that_the_files_spell_otherwise(tmp_path, texts):
    """transformers renames tensors of some families as it loads them; a Delta is by the names on disk."""
    model = make_checkpoint("mistral", tmp_path / "model")
    file = model / "model.safetensors"
    tensors = {name.replace("down_proj", "w2"): value for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"^layers\.parameters: model\.layers\.0\.mlp\.down_proj\.weight is not in"):
        preflight(tmp_path / "run", model, texts, "train.batch_size=2")
    assert not (tmp_path / "run").exists()


def test_texts_longer_than_the_models_positions(tmp_path):
    model, long = make_checkpoint("gpt2", tmp_path / "model"), tmp_path / "long.txt"
    long.write_text("\n".join(" ".join(["the"] * 100) for _ in range(4)))
    preflight(tmp_path / "run", model, long, "data.max_length=64")
    with pytest.raises(UserError, match=r"^data\.max_length: got 512, but .*model has 64 positions$"):
        preflight(tmp_path / "run", model, long)
