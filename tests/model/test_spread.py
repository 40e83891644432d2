"""One model over several GPUs: the numbers are the model's own, and no operation mixes devices.

There is no second GPU here. The numbers are held with accelerate's hooks on the CPU; devices by tensors without data
that say on which of two GPUs they are, and that refuse what a GPU would refuse: this takes a torch that was built
for CUDA, but no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import a_run
import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from worked import CPU, LAYER, Worked, batch

from rmu_exp.cli import compose
from rmu_exp.data.batches import PackedRows
from rmu_exp.evaluation.forward import Forward
from rmu_exp.model import spread
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.hooks import PLACES, watching
from rmu_exp.model.parameters import assemble
from rmu_exp.model.split import SplitModel
from rmu_exp.pipeline import run as pipeline
from rmu_exp.pipeline.models import several_gpus
from rmu_exp.record import results
from rmu_exp.settings import Model
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.loop import originals
from rmu_exp.unlearning.step import Step

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
aten = torch.ops.aten
built_for_gpus = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch was not built for CUDA")
METHODS = [
    "rmu",
    "rna",
    "multi_layer",
    "adaptive_rmu",
    "rr",
    "npo",
    "simnpo",
    "grad_diff",
    "max_entropy",
    "jensun",
]
METHODS += ["llmu", "scrub", "elm", "ssd", "repselect"]  # rmu_lat's adversary needs a way back, which takes a GPU


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def parts(model: nn.Module, first: object, second: object) -> dict[str, object]:
    """The lower layers on one device, the upper ones and all after them on the other; as accelerate maps them."""
    names = [name for name, module in model.named_modules() if name and not any(module.children())]
    layers = {".".join(name.split(".")[: name.split(".").index("layers") + 2]) for name in names if "layers." in name}
    others = [name for name in names if "layers." not in name]
    lower = {name for name in layers if int(name.rpartition(".")[2]) < LAYER}
    own = {name: first if name in lower else second for name in layers}
    return own | {name: first if "embed" in name else second for name in others}


def hooked(model: nn.Module, where: dict[str, object]) -> nn.Module:
    """As accelerate leaves a model that it has spread."""
    skip = getattr(model, "_skip_keys_device_placement", None)
    for name, place in where.items():
        add_hook_to_module(model.get_submodule(name), AlignDevicesHook(execution_device=place, skip_keys=skip))
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True, skip_keys=skip))
    spread.gather(model)
    return model


class Read(TorchDispatchMode):
    """A number that is read off a tensor without data is 1, a mask true everywhere, and everything is there once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten._unique2.default:
            return args[0], args[0], args[0]
        if func is aten.index.Tensor:
            args = (args[0], [everywhere(index) for index in args[1]])
        return func(*args, **(kwargs or {}))


def everywhere(index: torch.Tensor | None) -> torch.Tensor | None:
    if index is None or index.dtype != torch.bool or index.dim() != 1:
        return index
    return torch.empty(len(index), dtype=torch.long, device=index.device)


@contextmanager
def without_data(model: nn.Module) -> Iterator[nn.Module]:
    """The model spread over two GPUs that there are not, its tensors without data."""
    where = parts(model, FIRST, SECOND)
    with FakeTensorMode(allow_non_fake_inputs=True), Read():
        for name, module in model.named_modules():
            place = next((where[part] for part in where if name == part or name.startswith(f"{part}.")), FIRST)
            for own in (module._parameters, module._buffers):
                for key, value in own.items():
                    if value is not None:
                        empty = torch.empty(value.shape, dtype=value.dtype, device=place)
                        own[key] = nn.Parameter(empty, requires_grad=False) if own is module._parameters else empty
        yield hooked(model, where)


@built_for_gpus
@pytest.mark.parametrize("method", METHODS)
def test_no_loss_mixes_devices(checkpoint, method, monkeypatch):
    monkeypatch.setattr(PackedRows, "digest", "read off the host")
    more = {"offsets": [-2, 0]} if method == "rr" else {}
    work, order = Worked(checkpoint, method, layers=[1, 2, 3], **more), [batch(n % 2) for n in range(2)]
    with without_data(work.model) as model:
        made = type(work.method)(work.settings, replace(work.method.context, device=FIRST))
        masters = originals(model, work.trained, torch.float32)
        made.start(work.trained, masters)
        assert {w.device for w in masters} == {FIRST, SECOND}
        split = SplitModel(model, min(t.layer for t in work.trained))
        made.begin(split)
        for number, some in enumerate(order, 1):
            step = Step(split, some, assemble(model, work.trained, masters), work.layers, number=number)
            losses = made.loss(step)
            assert {x.device for x in losses.values()} == {FIRST}
            assert {x.device for x in step.numbers(LAYER, made.forget_target(step)).values()} == {FIRST}


@built_for_gpus
def test_the_check_sees_what_mixes_devices(checkpoint):
    """Without the hooks a layer on the second GPU gets what lies on the first."""
    work = Worked(checkpoint, "rmu")
    with without_data(work.model) as model:
        remove_hook_from_submodules(model)
        ids_BT = torch.zeros(1, 3, dtype=torch.long, device=FIRST)
        with pytest.raises(RuntimeError, match="at least two devices"):
            model(input_ids=ids_BT)


@built_for_gpus
def test_no_question_mixes_devices(checkpoint):
    """Prefixes that are reused, continuations that share a row, and what is written after a prompt."""
    with without_data(checkpoint.open(None, torch.float32, CPU)) as model:
        asked = Forward(model, FIRST)
        prefix = asked.extend([], [3, 4, 5])
        assert {keys.device for keys, _ in prefix} == {FIRST, SECOND}, "keys stay with their layer"
        assert asked.logits([[6, 7], [8, 9]], [(0, 1), (1, 0)], prefix).device == FIRST
        assert asked.logits([[6, 7, 8]], [(0, 1), (0, 2)], None, [(1, 1)]).device == FIRST
        out = model(input_ids=torch.zeros(2, 3, dtype=torch.long, device=FIRST), use_cache=True)
        out.past_key_values.batch_select_indices(torch.tensor([1]))
        with watching(model, lambda place, index, h_BTD: places.add(h_BTD.device), PLACES):
            places = set[torch.device]()
            model(input_ids=torch.zeros(1, 3, dtype=torch.long, device=FIRST))
        assert places == {FIRST}


ATTACKS = ["ablation", "latent", "lens", "norms", "probe", "prompts", "prune", "quantise", "relearn", "soft_prompt"]


@pytest.mark.parametrize("words", [["method=rmu"], ["method=npo", "layers=lora", "train.checkpointing=true"]])
def test_a_run_with_hooks_has_the_same_bytes(words, tmp_path, monkeypatch):
    """Training, questions, samples, damage and attacks, with accelerate's hooks on every part, on the CPU."""
    given = a_run.words(tmp_path)
    (tmp_path / "neutral.txt").write_text("\n".join(tiny.texts(8, 3)))
    given += [*a_run.seen(tmp_path), *words, "data.attacked=16", "eval.limit=40", f"attacks=[{','.join(ATTACKS)}]"]
    given += ["attacks.relearn.samples=[5]", "attacks.relearn.steps=2", "attacks.relearn.sources=[forget]"]
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "one"))
    a_run.carry_out(given, tmp_path / "plain")
    own, count = Checkpoint.open, []

    def opened(*args: Any) -> nn.Module:
        count.append(args)
        model = own(*args)
        return hooked(model, parts(model, "cpu", "cpu"))

    monkeypatch.setattr(Checkpoint, "open", opened)
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "other"))
    a_run.carry_out(given, tmp_path / "hooked")
    assert count
    assert (tmp_path / "plain/delta.safetensors").read_bytes() == (tmp_path / "hooked/delta.safetensors").read_bytes()
    one, other = (results.load(tmp_path / name / "results.json") for name in ("plain", "hooked"))
    assert one.qa == other.qa
    assert one.damage == other.damage
    assert not [entry.error for entry in other.attacks.values() if entry.error]
    for name, entry in one.attacks.items():
        assert entry.forget_acc == other.attacks[name].forget_acc, name


def test_the_map_is_even_in_whole_layers_and_what_does_not_fit_is_refused(checkpoint):
    skeleton = checkpoint.skeleton(None)
    size = sum(p.numel() for p in skeleton.parameters()) * 4
    found = spread.device_map(skeleton, torch.float32, {0: size, 1: size})
    assert set(found.values()) == {0, 1}
    layers = [found[f"model.layers.{i}"] for i in range(checkpoint.depth)]
    assert layers == sorted(layers)
    assert abs(layers.count(0) - layers.count(1)) <= 2
    with pytest.raises(UserError, match=r"^model\.device_map: .* GB of weights do not fit 2 GPUs with .* GB free \("):
        spread.device_map(skeleton, torch.float32, {0: size // 4, 1: size // 4})


def test_what_torch_holds_without_using_it_is_not_taken(monkeypatch):
    """As after training: torch keeps freed memory, which accelerate counts as taken."""
    held = [3]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(0))
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 10 - held[-1], 1: 10, "cpu": 99})
    assert spread.room((0, 1)) == {0: 10, 1: 10}


def test_a_judgement_has_a_device_of_its_own(tmp_path):
    """A run that was spread is judged on another machine; and a backend that places models itself is refused."""
    given = [*a_run.words(tmp_path), f"output={tmp_path / 'run'}"]
    a_run.carry_out(given, tmp_path / "run")
    file = tmp_path / "run/config.yaml"
    file.write_text(file.read_text().replace("device_map: null", "device_map: auto"))
    judged = [f"unlearned={tmp_path / 'run'}", "attacks=[]", "tracking=off"]
    for words, found in ((["model.device=cpu"], None), (["model.device_map=null"], None), ([], "auto")):
        (judge,) = compose.composed([*judged, *words, f"output={tmp_path / 'judged'}"], a_run.CONF, "judge")
        assert judge.model.device_map == found
    file.write_text(
        file.read_text().replace("device_map: auto", "device_map: null").replace("device: auto", "device: cpu")
    )
    words = ["model.device_map=auto", f"output={tmp_path / 'judged'}"]
    (judge,) = compose.composed([*judged, *words], a_run.CONF, "judge")
    assert judge.model.device == "auto", "the run's own device is none of this judgement's"
    with pytest.raises(UserError, match=r"^model\.device_map: eval\.backend=hf places models itself; use"):
        compose.composed([*given, "model.device_map=auto", "eval.backend=hf", "export=true"], a_run.CONF)


@built_for_gpus
def test_repselects_adapters_come_back_to_their_layers(checkpoint):
    work = Worked(checkpoint, "repselect", layers=[1, 2, 3])
    with without_data(work.model) as model:
        made = type(work.method)(work.settings, replace(work.method.context, device=FIRST))
        masters = originals(model, work.trained, torch.float32)
        weights = assemble(model, work.trained, masters)
        made.attacked(weights, trains=True)
        made.restore(made.state())
        attacked = made.attacked(weights, trains=True)
        assert {w.device for own in attacked.values() for w in own.values()} == {FIRST, SECOND}


def test_one_gpu_or_none_is_refused_and_so_is_a_device_beside_it(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^model\.device_map: auto is for two GPUs or more, and 0 can be seen"):
        several_gpus(Model(name="lore", device_map="auto"))
    with pytest.raises(
        UserError, match=r"^model\.device: got 'cpu', but model\.device_map=auto takes every visible GPU"
    ):
        several_gpus(Model(name="lore", device="cpu", device_map="auto"))
    monkeypatch.setattr("rmu_exp.pipeline.models.several_gpus", lambda settings: (0, 1))
    monkeypatch.setattr("rmu_exp.pipeline.models.refuse_device", lambda device: None)
    given = [*a_run.words(tmp_path), "model.device_map=auto", "method=cir", "method.mlps=2", "train.max_batches=60"]
    (run,) = compose.composed([*given, f"output={tmp_path / 'run'}"], a_run.CONF)
    with pytest.raises(UserError, match=r"^model\.device_map: cir looks into the layers as they run; leave it out"):
        pipeline.prepare(run, tmp_path / "run")
