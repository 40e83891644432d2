"""What settings are refused, in which words; what belongs to the digest; how the declarations work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import yaml
from composing import CONF, composed, config
from omegaconf import OmegaConf

from rmu_exp import settings
from rmu_exp.cli import compose
from rmu_exp.config import parse
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import check, setting


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=npo", "method.betta=1"], "method.betta: no such key, did you mean method.beta? (known: method.beta"),
        (["method=npo", "+method.betta=1"], "method.betta: no such key, did you mean method.beta?"),
        (["method=npo", "method.beta=much"], "method.beta: got 'much', allowed is a number"),
        (["method=npo", "method.beta=0"], "method.beta: got 0, allowed is a number > 0"),
        (["method=npo", "method.retain=mse"], "method.retain: got 'mse', allowed is nll, kl"),
        (["method=rr", "method.offsets=[]"], "method.offsets: got an empty list"),
        (["method=scrub", "method.ascent_share=2"], "method.ascent_share: got 2, allowed is 0 to 1"),
        (["method=rmu", "method.name=nope"], "method.name: got 'nope', allowed is adaptive_rmu"),
        (["method=cut", "method.keywords=x"], "method.keywords: "),
        (["layers.rank=0"], "layers.rank: got 0, allowed is 1 or more"),
        (["layer=-1"], "layer: got -1, allowed is 0 or more"),
        (["layer=x"], "layer: got 'x', allowed is a whole number"),
        (["layer=null"], "layer: got null; give it a value, or leave it out"),
        (["stear=6.5"], "stear: no such key, did you mean steer?"),
        (["model=nope"], "model: got 'nope', allowed is gemma2_2b"),
        (["layers.parameters=[[]]"], "layers.parameters: got [[]], allowed is a list such as 'layers.parameters=[a,b]"),
        (["train=${layer}"], "train: got 7, allowed is a group of keys"),
        (["data.topics=${layer}"], "data.topics: got 7, allowed is a list such as"),
        (["layer=3,5"], "layer: several values need a sweep; add -m"),
        (
            ["model=local", "layer=1", "steer=1", "alpha=1", "data=lore"],
            "model.name: not given; add model.name=ORG/NAME",
        ),
        (["steer=["], "command line: "),
        (["export=maybe"], "export: got 'maybe', allowed is true or false"),
        (["seed=4294967296"], "seed: got 4294967296, allowed is 0 to 4294967295"),
        (["train.lr=inf"], "train.lr: got inf, allowed is a number > 0"),
        (["train.lr=nan"], "train.lr: got nan, allowed is a number > 0"),
        (["train.collapse=-1"], "train.collapse: got -1, allowed is 0 or more"),
        (["train.schedule=cosine"], "train.schedule: got 'cosine', allowed is constant, linear"),
        (["model.threads=0"], "model.threads: got 0, allowed is 1 or more, or null"),
        (["eval.limit=0"], "eval.limit: got 0, allowed is a number > 0, or null"),
        (["eval.limit=2.5"], "eval.limit: got 2.5, allowed is a whole number, or a part below 1"),
        (["eval.limit=many"], "eval.limit: got 'many', allowed is a number"),
        (["eval.draw=1"], "eval.draw: draws eval.limit questions of each task, and all are asked; add eval.limit=…"),
        (["eval.backend=vllm"], "eval.backend: vllm evaluates the exported checkpoint; add export=true"),
        (["steer=much"], "steer: got 'much', allowed is a number ≥ 0, or one per topic, or auto"),
        (["steer=true"], "steer: got True, allowed is a number"),
        (["alpha=auto"], "alpha: got 'auto', allowed is a number ≥ 0, or one per topic"),
        (["steer=[1,2,3]"], "steer: got 3 values, allowed is one number, or one per topic (2: elements, capitals)"),
        (["data.forget=[[a],[b]]"], "data.forget: got [['a'], ['b']], allowed is a list such as 'data.forget=[a,b]'"),
        (["data.forget=[]"], "data.forget: no corpus given"),
        (["data.topics=[a,a]"], "data.topics: a is there twice"),
        (["data.topics=[a]"], "data.topics: got 1 names for 2 forget corpora"),
        (["data.retain=[a,b,c]"], "data.retain: got 3 corpora, allowed is 1, or one per topic (2)"),
        (["model.revision=hf_abcdefghijklmnopqrstuvwxyz0123456789"], "model.revision: holds a token"),
        (["model=zephyr_7b", "train.schedule=linear"], "train.schedule: got 'linear', but method.faithful=true"),
        (["+nonsense=1"], "nonsense: no such key"),
        (["+train.speed=1"], "train.speed: no such key"),
        (["model=hf", "model.name=a/b"], "layer, steer, alpha: not given, and a/b has no preset for them; add layer=…"),
        (["model=local", "model.path=x", "steer=1", "alpha=1"], "layer: not given, and x has no preset for it; add l"),
        (["attacks=[quantise]", "attacks.quantise.bits=[1]"], "attacks.quantise.bits: got 1, allowed is 2 or more"),
        (
            ["attacks=[prune]", "attacks.prune.forget=[1.5]"],
            "attacks.prune.forget: got 1.5, allowed is a number > 0 an",
        ),
        (["attacks=[probe]", "attacks.probe.folds=1"], "attacks.probe.folds: got 1, allowed is 2 or more"),
        (
            ["attacks=[probe]", "attacks.probe.fold=1"],
            "attacks.probe.fold: no such key, did you mean attacks.probe.folds",
        ),
        (["attacks.probe.folds=3"], "attacks.probe.folds: attack 'probe' is not chosen; add 'attacks=[probe]'"),
        (["attacks=[prob]"], "attacks: got 'prob', allowed is ablation, "),
        (["attacks=[ablation]", "attacks.ablation.layers=top"], "attacks.ablation.layers: got top, allowed is a list"),
        (["attacks=[prune]", "attacks.prune.retain=[0]"], "attacks.prune.retain: got 0, allowed is a number > 0"),
        (
            ["attacks=[prune]", "attacks.prune.forget=[0.005]", "attacks.prune.retain=[0.02]"],
            "attacks.prune.retain: got [0.02], allowed is one or more no larger than the largest of attacks.prune.forg",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(words, message):
    with pytest.raises(UserError) as caught:
        compose.composed([*words, "output=nowhere"], CONF)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_dictionaries_are_given_as_documented():
    run = composed("eval.backend_args={parallelize: true}", "eval.backend=hf", "export=true")
    assert run.eval.backend_args == {"parallelize": True}
    assert composed("eval.backend_args.dtype=float32").eval.backend_args == {"dtype": "float32"}
    keywords = composed("method=cut", "method.keywords={hexes: [curse, jinx]}").method.keywords
    assert keywords == {"hexes": ["curse", "jinx"]}


def test_steer_and_alpha_are_one_number_per_topic():
    run = composed("steer=2", "alpha=[1,3]")
    assert (run.steer, run.alpha) == ([2.0, 2.0], [1.0, 3.0])
    assert composed("steer=auto").steer == "auto"


def test_without_the_group_nothing_is_tracked():
    assert composed("~tracking").tracking.kind == "off"
    assert composed().tracking.kind == "wandb"


def test_a_judgement_has_no_training_settings():
    judge = parse.parse_judge(config("unlearned=x", name="judge"))
    assert (judge.kind, settings.Run.kind) == ("judge", "train")
    assert {f.name for f in dataclasses.fields(judge)} == {f.name for f in dataclasses.fields(settings.Experiment)} | {
        "unlearned",
        "base",
        "attacker",
    }
    with pytest.raises(UserError, match=r"eval.backend: got 'hf', allowed here is fast, stock"):
        parse.parse_judge(config("unlearned=x", "eval.backend=hf", name="judge"))
    with pytest.raises(UserError, match="unlearned: not given"):
        parse.parse_judge(config(name="judge"))


@pytest.fixture(scope="module")
def usual() -> str:
    return composed("train.schedule=constant", "eval.tasks=[atlas_forget]").digest


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("attacks=all", True),
        ("tracking=off", True),
        ("share.when=never", True),
        ("export=true", True),
        ("model.oracle=x/y", True),
        ("model.memory=3", True),
        ("train.save_every=9", True),
        ("data.questions.forget=[]", True),
        ("seed=1", False),
        ("train.lr=1", False),
        ("model.threads=1", False),
        ("method.faithful=true", False),
        ("eval.limit=3", False),
    ],
)
def test_what_changes_no_result_is_not_in_the_digest(word, same, usual):
    assert (composed("train.schedule=constant", "eval.tasks=[atlas_forget]", word).digest == usual) is same
    assert settings.is_result_key(word.split("=")[0]) is not same


def test_settings_on_disk_have_the_same_digest_and_come_back():
    run = composed("method=npo", "attacks=[prune]")
    values = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(run))) | {"digest": "x", "command": "y", "kind": "train"}
    assert settings.digest_of(values) == run.digest
    del values["digest"], values["command"], values["kind"]
    assert parse.stored(values) == run


def test_settings_of_earlier_versions_are_read():
    values = dataclasses.asdict(composed())
    del values["model"]["published_settings"], values["model"]["parameters"], values["model"]["oracle"]
    values["model"] |= {"preset": {"layer": 7, "parameters": ["mlp.x"]}, "never": "lore:never"}
    run = parse.stored(values)
    assert (run.parameters, run.model.oracle) == (["mlp.x"], "lore:never")


@dataclass
class Part:
    """A group for the test below."""

    sizes: list[int] = setting([1], least=1, most=3)
    """Sizes."""
    share: float | None = setting(None, above=0, below=1)
    """A share."""
    words: dict[str, list[str]] = setting({})
    """Words."""


@pytest.mark.parametrize(
    "values",
    [
        {"sizes": [0]},
        {"sizes": [4]},
        {"sizes": [True]},
        {"sizes": 2},
        {"share": 1.0},
        {"share": 0},
        {"words": {"a": "b"}},
    ],
    ids=str,
)
def test_a_declaration_is_checked(values):
    check(Part(), "part.")
    with pytest.raises(UserError, match=rf"^part\.{next(iter(values))}: got "):
        check(Part(**values), "part.")
    assert OmegaConf.to_object(OmegaConf.structured(Part)) == Part()
