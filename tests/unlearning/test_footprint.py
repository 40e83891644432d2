"""Memory is said before weights are loaded, and what cannot fit is refused in one line."""

from __future__ import annotations

import pytest
import tiny
import torch
from a_run import CONF

from rmu_exp.cli import compose
from rmu_exp.config import plugins
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.pipeline import fits
from rmu_exp.pipeline.run import prepare
from rmu_exp.support import memory
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.footprint import Alive

HIDDEN, INNER, LAYERS, VOCABULARY = 32, 64, 6, len(set(tiny.WORDS)) + 3
NEEDS = {"cir": ["train.max_batches=60", "method.mlps=2", "layer=3"], "rr": ["layer=3", "method.offsets=[-2,0]"]}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    tiny.mistral(folder / "model", LAYERS, HIDDEN)
    (folder / "a.txt").write_text("\n".join(tiny.texts(20, 0)))
    given = [f"model.path={folder / 'model'}", f"data.forget=[{folder / 'a.txt'}]", f"data.retain=[{folder / 'a.txt'}]"]
    return [
        "model=local",
        "data=local",
        "tracking=off",
        "eval=none",
        "layer=2",
        "steer=1",
        "alpha=1",
        *given,
        "train.batch_size=4",
    ]


@pytest.fixture(autouse=True)
def _said_of_the_smallest(monkeypatch):
    def refuse(*args):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Checkpoint, "open", refuse)
    monkeypatch.setattr(fits, "WORTH_A_WORD", 0)


def plan_of(given, folder):
    (run,) = compose.composed([*given, f"output={folder}"], CONF)
    return prepare(run, folder).source


def count(given, folder):
    plan = plan_of(given, folder)
    return fits.counted(plan, [next(plan.batches)] * fits.STEPS)


def test_bytes_alive_are_those_of_storages():
    with Alive() as alive:
        x = torch.zeros(10, 10, device="meta")
        y = x[:5].T  # a view
        z = x + 1
        assert alive.now == 800
        assert (x.sum().item(), len(x[(x[:, 0] > 0)])) == (1, 10)
        del x, z
        assert alive.now == 400  # y holds x's storage
        del y
    assert (alive.now, alive.most >= 800) == (0, True)


def test_weights_and_what_is_kept_are_those_of_the_shapes(words, tmp_path):
    takes = count([*words, "layers.span=2"], tmp_path)
    attention, mlp = 2 * HIDDEN**2 + 2 * HIDDEN * HIDDEN // 2, 3 * HIDDEN * INNER
    layers = 3 * (attention + mlp + 2 * HIDDEN) + VOCABULARY * HIDDEN + HIDDEN
    assert takes.weights == pytest.approx(4 * layers, rel=0.01)  # rotary frequencies beside them
    masters = 2 * HIDDEN * INNER * 4  # two down-projections, fp32: the masters, gradients, two moments
    assert takes.kept == pytest.approx(4 * masters, rel=0.1)
    assert takes.step > takes.kept
    half = count([*words, "layers.span=2", "model.dtype=bfloat16"], tmp_path)
    assert half.weights / takes.weights == pytest.approx(0.5, rel=0.01)
    assert half.kept == pytest.approx(takes.kept, rel=0.01)


METHODS = [
    pytest.param(name, marks=[] if name in ("npo", "rmu_lat") else pytest.mark.slow)
    for name in sorted(plugins.files("method"))
    if name != "undo"  # wants a teacher
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted(words, tmp_path, method):
    assert count([*words, f"method={method}", *NEEDS.get(method, ["layer=3"])], tmp_path).step > 0


def test_it_is_said_before_training(words, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "room", lambda *_: (3_000_000_000, 4_000_000_000))
    said = plan_of(words, tmp_path).memory
    assert said.startswith("memory: training takes about 0.0 GB")
    assert said.endswith("3.0 GB are free on cpu")


@pytest.mark.parametrize("more", [["model.dtype=bfloat16"], ["model.memory=0.0001", "method=grad_diff"]])
def test_what_cannot_fit_is_refused_before_anything_is_written(words, tmp_path, monkeypatch, more):
    if "model.dtype=bfloat16" in more:
        monkeypatch.setattr(memory, "room", lambda *_: (10, 1000))
    with pytest.raises(UserError, match=r"^model.device: cpu has 0.0 GB, and training \w+ keeps 0.0 GB between two st"):
        plan_of([*words, *more], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_little_free_is_no_reason_to_refuse(words, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "room", lambda *_: (0, 10**9))
    assert "0.0 GB are free" in plan_of(words, tmp_path).memory


def test_room_is_that_of_the_tightest_group(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\nSwapTotal: 10 kB\n")
    (tmp_path / "cgroup").write_text("1:cpu:/x\n0::/job/step\n")
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "job/step/memory.max").write_text("max\n")
    for name, file in {"MEMINFO": "meminfo", "CGROUP": "cgroup", "CGROUPS": ""}.items():
        monkeypatch.setattr(memory, name, tmp_path / file)
    assert memory.room("cpu") == (900 * 1024, 1010 * 1024)
    (tmp_path / "job/memory.max").write_text("500000\n")
    assert memory.room("cpu") == (500000 + 10240, 500000 + 10240)
    assert memory.room("cpu", 0.0001) == (100000, 100000)
    assert memory.room("mps") is None
