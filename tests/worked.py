"""What the tests of the methods share: a tiny model, a step of it, and a method over it."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from rmu_exp.config import plugins
from rmu_exp.data import batches as batching
from rmu_exp.model.parameters import assemble, resolve
from rmu_exp.model.split import SplitModel
from rmu_exp.unlearning import method as methods
from rmu_exp.unlearning.loop import originals
from rmu_exp.unlearning.step import Step

torch.set_num_threads(1)
CPU = torch.device("cpu")
CONF = Path(__file__).parent.parent / "conf"
LAYER, STEPS, TOPICS = 3, 4, ["river", "bridge"]
FORGET = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]
RETAIN = [[15, 16, 17, 4, 5], [6, 3]]


def batch(topic: int = 0) -> batching.Batch:
    """Three forget texts and two retain texts, packed."""
    packed = batching.pack({batching.FORGET: FORGET, batching.RETAIN: RETAIN}, 2)
    return batching.Batch(topic, [packed], 19)


def context(checkpoint, **other) -> methods.Context:
    values = {
        "layer": LAYER,
        "topics": TOPICS,
        "steer": [6.5, 3.0],
        "alpha": [2.0, 4.0],
        "hidden": checkpoint.hidden_size,
        "device": CPU,
        "steps": STEPS,
        "seed": 1,
        "tokenizer": checkpoint.tokenizer(),
    }
    return methods.Context(**(values | other))


def defaults(name: str) -> dict:
    """The values of a method's file in conf/."""
    method = yaml.safe_load((CONF / f"method/{name}.yaml").read_text(encoding="utf-8"))["method"]
    return {key: value for key, value in method.items() if key != "name"}


class Worked:
    """A method, the model it needs, and a step of it.

    Attributes:
        full: the whole causal model, for the obvious way of computing things.
    """

    def __init__(self, checkpoint, name: str, layers=None, about=None, moved: float = 0.0, **settings) -> None:
        module = plugins.module("method", name)
        self.settings = module.Settings(**(defaults(name) | settings))
        self.method = module.Method(self.settings, context(checkpoint, **(about or {})))
        targets = module.Method.targets(self.settings, LAYER)
        depth = None if module.Method.logits else max(targets) + 1
        self.full = checkpoint.open(None, torch.float32, CPU)
        self.model = checkpoint.open(depth, torch.float32, CPU)
        every = range(checkpoint.depth if depth is None else depth)
        self.trained = resolve(self.model, layers or [i for i in every if i >= LAYER - 1], ["mlp.down_proj.weight"])
        self.masters = originals(self.model, self.trained, torch.float32)
        self.method.start(self.trained, self.masters)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for w in self.masters:
                w += moved * torch.randn(w.shape, generator=generator)
        self.split = SplitModel(self.model, min(t.layer for t in self.trained))
        self.layers = sorted({LAYER, *targets})
        self.method.begin(self.split)

    def step(self, number: int = 1, topic: int = 0) -> Step:
        weights = assemble(self.model, self.trained, self.masters)
        return Step(self.split, batch(topic), weights, self.layers, number=number)

    def loss(self, **where) -> dict[str, torch.Tensor]:
        return self.method.loss(self.step(**where))

    def gradients(self, **where) -> list[torch.Tensor]:
        return list(torch.autograd.grad(self.loss(**where)["loss"], self.masters))

    def put(self) -> None:
        """The moved values in the whole model."""
        for t, w in zip(self.trained, self.masters, strict=True):
            t.view(self.full.model.layers[t.layer]).copy_(w.detach())


def logits(model, text: list[int]) -> torch.Tensor:
    """A text's logits (T, V), the text alone."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([text])).logits[0]


def nll(model, text: list[int]) -> torch.Tensor:
    """−log p of every token but the first, the obvious way."""
    log_p = logits(model, text).log_softmax(-1)
    return -torch.stack([log_p[i, token] for i, token in enumerate(text[1:])])
