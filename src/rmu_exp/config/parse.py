"""A composed configuration to a checked Run or Judge: what does not fit is refused in one line.

This module reads no file and imports nothing heavy, so that a mistyped key is refused at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config import attacks, methods
from rmu_exp.config.keys import one_line, show, unknown_key
from rmu_exp.settings import AUTO, PRESET, Judge, Run
from rmu_exp.support import redaction
from rmu_exp.support.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")
BAD_LINE = ("error", "skip")
DISTRIBUTIONS = ("uniform", "normal")
SCHEDULES = ("constant", "linear")
SHARING = ("auto", "always", "never")
MOST_SEED = 2**32 - 1  # what every library takes
TRACKERS = ("wandb", "off")
TRACKING_MODES = ("auto", "online", "offline")


def parse(config: DictConfig) -> Run:
    """A composed configuration as a checked :class:`Run`.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range or an impossible combination.
    """
    try:
        _refuse_unknown(config, Run, "")
        for key in ("layer", "steer", "alpha"):
            if OmegaConf.is_missing(config, key) or OmegaConf.select(config, key) is None:
                raise UserError(f"{key}: not given, and {_model_name(config)} has no preset for it; add {key}=…")
        run = OmegaConf.to_object(config)
        assert isinstance(run, Run)
        run.method = _method(config.method)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    _check_lists(run)
    _check(run)
    return run


def _method(config: DictConfig) -> Any:
    """The method's settings as the dataclass that its file declares."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    name, presets = values.get("name"), values.pop("presets", None) or {}
    if name not in methods.names():
        raise UserError(f"method.name: got {name!r}, allowed is {', '.join(methods.names())}")
    schema = methods.settings(name)
    known = [f"method.{f.name}" for f in dataclasses.fields(schema)]
    for key in values:
        if f"method.{key}" not in known:
            raise UserError(f"{unknown_key(f'method.{key}', known)} for {name}")
    allowed = [*PRESET, *(f.name for f in dataclasses.fields(schema))]
    for model, entry in presets.items():
        for key in set(entry) - set(allowed):
            raise UserError(f"method.presets: {name} has {key!r} for {model}, allowed is {', '.join(allowed)}")
    typed = OmegaConf.merge({"method": OmegaConf.structured(schema)}, {"method": values})
    return OmegaConf.to_object(typed)["method"]  # type: ignore[index,call-overload]


def _model_name(config: Any) -> str:
    if OmegaConf.is_missing(config.model, "path"):
        return "a local model"
    return str(config.model.path or config.model.name or "the model")


def parse_judge(config: DictConfig) -> Judge:
    """A composed configuration as a checked :class:`Judge`. Raises as :func:`parse`."""
    try:
        _refuse_unknown(config, Judge, "")
        if OmegaConf.is_missing(config, "unlearned"):
            raise UserError(
                "unlearned: not given; add unlearned=… (a run's folder, a checkpoint's folder, or a hub id)"
            )
        judge = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    assert isinstance(judge, Judge)
    _check_lists(judge)
    if not 0 <= judge.seed <= MOST_SEED:
        raise UserError(f"seed: got {judge.seed}, allowed is 0 to {MOST_SEED}")
    if judge.eval.backend not in ("fast", "stock"):
        raise UserError(f"eval.backend: got {judge.eval.backend}, allowed here is fast, stock")
    _check_parts(judge)
    return judge


def per_topic(key: str, value: Any, topics: list[str]) -> list[float]:
    """A number, or one per topic, as one float per topic."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = [v for v in given if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(given) or not all(math.isfinite(v) and v >= 0 for v in numbers):
        other = ", or auto" if key == "steer" else ""
        raise UserError(f"{key}: got {show(value)}, allowed is a number ≥ 0, or one per topic{other}")
    if len(given) == 1:
        return [float(given[0])] * len(topics)
    if len(given) != len(topics):
        raise UserError(
            f"{key}: got {len(given)} values, allowed is one number, or one per topic "
            f"({len(topics)}: {', '.join(topics)})"
        )
    return [float(v) for v in given]


def _check(run: Run) -> None:
    if not run.data.forget:
        raise UserError("data.forget: no corpus given; add 'data.forget=[a.jsonl,b.jsonl]'")
    for key, names in (("data.topics", run.data.topics or []), ("data.forget", run.data.forget)):
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{key}: {twice[0]} is there twice; name each once")
    if run.data.topics is not None and len(run.data.topics) != len(run.data.forget):
        raise UserError(f"data.topics: got {len(run.data.topics)} names for {len(run.data.forget)} forget corpora")
    if len(run.data.retain) not in (1, len(run.data.forget)):
        raise UserError(
            f"data.retain: got {len(run.data.retain)} corpora, allowed is 1, or one per topic ({len(run.data.forget)})"
        )
    if not run.model.name and not run.model.path:
        raise UserError("model.name: not given; add model.name=ORG/NAME, or model.path=FOLDER")
    if not isinstance(run.layer, int) or isinstance(run.layer, bool):
        raise UserError(f"layer: got {show(run.layer)}, allowed is a whole number, 0 or more")
    if run.steer != AUTO:
        run.steer = per_topic("steer", run.steer, run.topics)
    if not (math.isfinite(run.steering.factor) and run.steering.factor > 0):
        raise UserError(f"steering.factor: got {run.steering.factor}, allowed is a number > 0")
    run.alpha = per_topic("alpha", run.alpha, run.topics)
    if run.train.lr is None:
        raise UserError("train.lr: not given and the model has no preset; add train.lr=5e-5")
    if not isinstance(run.layers.span, int) or isinstance(run.layers.span, bool):
        raise UserError(f"layers.span: got {show(run.layers.span)}, allowed is a whole number, 0 or more")
    if not isinstance(run.layers.lora, bool):
        raise UserError(f"layers.lora: got {show(run.layers.lora)}, allowed is true or false")
    at_least = {"layer": 0, "seed": 0, "layers.span": 0, "train.batch_size": 1, "train.max_batches": 1}
    at_least |= {"train.check_every": 0, "train.check_questions": 4}
    at_least |= {"data.min_len": 0, "data.max_length": 1, "eval.batch_size": 1}
    at_least |= {"layers.rank": 1, "layers.rank_alpha": 1}
    if run.seed > MOST_SEED:
        raise UserError(f"seed: got {run.seed}, allowed is 0 to {MOST_SEED}")
    for key, least in at_least.items():
        if _get(run, key) is not None and _get(run, key) < least:
            raise UserError(f"{key}: got {_get(run, key)}, allowed is {least} or more")
    if not (math.isfinite(run.train.lr) and run.train.lr > 0):
        raise UserError(f"train.lr: got {run.train.lr}, allowed is a number > 0")
    if run.train.save_every is not None and not run.train.save_every >= 0:
        raise UserError(f"train.save_every: got {run.train.save_every}, allowed is 0 or more seconds, or null")
    if run.faithful and run.train.schedule != "constant":
        raise UserError(f"train.schedule: got {run.train.schedule}, but method.faithful=true has a constant rate")
    if run.model.threads is not None and run.model.threads < 1:
        raise UserError(f"model.threads: got {run.model.threads}, allowed is 1 or more, or null for all")
    if run.eval.backend not in ("fast", "stock") and not run.export:
        raise UserError(f"eval.backend: {run.eval.backend} judges the exported checkpoint; add export=true")
    if not (math.isfinite(run.share.gigabytes) and run.share.gigabytes >= 0):
        raise UserError(f"share.gigabytes: got {run.share.gigabytes}, allowed is a number ≥ 0")
    choices = {
        "steering.kind": ("fixed",),
        "steering.distribution": DISTRIBUTIONS,
        "retain.kind": ("mse",),
        "train.schedule": SCHEDULES,
        "share.when": SHARING,
    }
    _check_choices(run, choices)
    _check_parts(run)


def _check_lists(part: Any, prefix: str = "") -> None:
    """OmegaConf lets an interpolation put anything in a list's place, and lists into lists."""
    for field in dataclasses.fields(part):
        value, key, kind = getattr(part, field.name), f"{prefix}{field.name}", str(field.type)
        if dataclasses.is_dataclass(value):
            _check_lists(value, f"{key}.")
        elif kind.startswith("list[") and not (value is None and "None" in kind) and not _is_list(value, kind):
            raise UserError(f"{key}: got {show(value)}, allowed is a list such as '{key}=[a,b]'")


def _is_list(value: Any, kind: str) -> bool:
    inside = {"list[str]": str, "list[int]": int}.get(kind.partition(" ")[0], object)
    return isinstance(value, list) and all(isinstance(part, inside) for part in value)


def _check_choices(run: Run | Judge, choices: dict[str, tuple[str, ...]]) -> None:
    for key, allowed in choices.items():
        if _get(run, key) not in allowed:
            raise UserError(f"{key}: got {_get(run, key)!r}, allowed is {', '.join(allowed)}")


def _check_parts(run: Run | Judge) -> None:
    """What a run and a judgement have in common."""
    _refuse_secrets(run)
    if run.model.memory is not None and not run.model.memory > 0:
        raise UserError(f"model.memory: got {run.model.memory}, allowed is a number of gigabytes > 0, or null")
    if run.eval.limit is not None and run.eval.limit < 1:
        raise UserError(f"eval.limit: got {run.eval.limit}, allowed is 1 or more, or null for all questions")
    if not run.tracking.wait > 0:
        raise UserError(f"tracking.wait: got {run.tracking.wait:g}, allowed is a number > 0")
    choices = {"model.dtype": DTYPES, "data.on_bad_line": BAD_LINE, "tracking.kind": TRACKERS}
    _check_choices(run, choices | {"tracking.mode": TRACKING_MODES})
    if run.attacks:
        run.attacks = attacks.checked(run.attacks)


def _refuse_secrets(run: Run | Judge) -> None:
    """Settings are written to disk and to W&B as they are: no token or password may stand in them."""
    values = dataclasses.asdict(run)
    if redaction.holds(str(values)):
        for key, value in _leaves(values, ""):
            if redaction.holds(value):
                wanted = "keep it in the environment (HF_TOKEN, WANDB_API_KEY, …)"
                raise UserError(f"{key}: holds a token or a password, which would be written down; {wanted}")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, (dict, list)):
        yield key, value
        return
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{key}.{name}" if key else str(name)
        yield place, name
        yield from _leaves(part, place)


def _get(run: Run | Judge, dotted: str) -> Any:
    value: Any = run
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _refuse_unknown(config: DictConfig, schema: type, prefix: str) -> None:
    """Hydra's ``+key=value`` adds keys that nothing reads."""
    known = {f.name: f.default_factory for f in dataclasses.fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", [prefix + name for name in known]))
        nested = known[key]
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            group = config[key]
            if not isinstance(group, DictConfig):
                raise UserError(f"{prefix}{key}: got {show(group)}, allowed is a group of keys")
            _refuse_unknown(group, nested, f"{prefix}{key}.")
