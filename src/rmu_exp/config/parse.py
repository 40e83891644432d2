"""A composed configuration to a checked Run or Judge; what does not fit is refused in one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rmu_exp.config import plugins
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import check, groups_of, keys_of, show

FREE = ("eval.backend_args", "method")  # any key may be given here; plugins check those of a method
WANTED = {  # what OmegaConf says, and what is allowed
    "is not a ListConfig": "a list such as '{0}=[a,b]'",
    "Union[int, float]": "a number",
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
}
NEEDED = ("layer", "steer", "alpha")
Settings = TypeVar("Settings", Run, Judge)
T = TypeVar("T")


def register() -> None:
    """Give Hydra the schemas that conf/config.yaml and conf/judge.yaml start from."""
    for schema in (Run, Judge):
        node = OmegaConf.structured(schema)
        for key in FREE:
            if (part := OmegaConf.select(node, key)) is not None:
                OmegaConf.set_struct(part, False)
        ConfigStore.instance().store("run_schema" if schema is Run else "judge_schema", node)


def outline(config: DictConfig | Mapping[str, object]) -> Run:
    """A composed configuration as a :class:`Run` in which the settings of the method and the attacks are unchecked.

    Raises as :func:`parse`.
    """
    values = _plain(config)
    if missing := [key for key in NEEDED if values.get(key) in (None, "???")]:
        model, them = values.get("model"), "it" if len(missing) == 1 else "them"
        named = (model.get("path") or model.get("name")) if isinstance(model, Mapping) else None
        wanted = " ".join(f"{key}=…" for key in missing)
        raise UserError(
            f"{', '.join(missing)}: not given, and {named or 'the model'} has no preset for {them}; add {wanted}"
        )
    return made(Run, values)


def parse(config: DictConfig | Mapping[str, object]) -> Run:
    """A composed configuration as a checked :class:`Run`.

    Raises UserError: an unknown key, a wrong type, a value out of range or an impossible combination.
    """
    run = outline(config)
    name = run.method.get("name") if isinstance(run.method, dict) else run.method
    run.method = plugin(plugins.METHODS, str(name), run.method)
    return _checked(run)


def outline_judge(config: DictConfig | Mapping[str, object]) -> Mapping[str, object]:
    """A composed configuration that names an unlearned model. Raises UserError."""
    values = _plain(config)
    if values.get("unlearned") == "???":
        raise UserError("unlearned: not given; add unlearned=… (a run's folder, a checkpoint's folder, or a hub id)")
    return values


def parse_judge(config: DictConfig | Mapping[str, object]) -> Judge:
    """A composed configuration as a checked :class:`Judge`. Raises as :func:`parse`."""
    return _checked(made(Judge, outline_judge(config)))


def stored(values: Mapping[str, object]) -> Run | Judge:
    """The settings that a run directory holds, of earlier versions too. Raises as :func:`parse`."""
    values = current(values)
    if isinstance(model := values.get("model"), dict):
        model = {"oracle" if key == "never" else key: value for key, value in model.items()}
        preset = model.pop("preset", None) or {}
        values["model"] = {"parameters": preset.get("parameters")} | model
    if isinstance(steering := values.get("steering"), dict) and steering.get("kind") == "fixed":
        values["steering"] = {"kind": "absolute", "distribution": steering.get("distribution", "uniform")}
    return parse_judge(values) if "unlearned" in values else parse(values)


def current(values: Mapping[str, object]) -> dict[str, object]:
    """Settings of an earlier version, with the roles of questions where they stand now."""
    values, data = dict(values), values.get("data")
    if isinstance(data, dict) and "forget_tasks" in data:
        tasks, forget, adjacent = (data.get(key) or [] for key in ("tasks", "forget_tasks", "adjacent_tasks"))
        rest = [task for task in tasks if task not in (*forget, *adjacent, "wmdp") and "_open_" not in task]
        kept = {k: v for k, v in data.items() if k not in ("tasks", "forget_tasks", "adjacent_tasks")}
        values["data"] = kept | {"questions": {"forget": forget, "adjacent": adjacent, "general": rest}}
    return values


def plugin(group: str, name: str, values: object) -> Any:
    """The checked ``Settings`` of a method or an attack. Raises as :func:`parse`."""
    prefix = "method." if group == plugins.METHODS else f"{group}.{name}."
    schema = plugins.schema(group, name)
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.')}: got {show(values)}, allowed is a group of keys")
    found: object = made(schema, values, prefix)
    check(found, prefix)
    return found


def made(schema: type[T], values: Mapping[str, object], prefix: str = "") -> T:
    """A dataclass of settings from plain values, ranges unchecked; ``prefix``: of its keys in messages.

    Raises UserError: an unknown key, or a wrong type.
    """
    for name in groups_of(schema):
        if not isinstance(group := values.get(name, {}), Mapping):
            raise UserError(f"{prefix}{name}: got {show(group)}, allowed is a group of keys")
    try:
        found: object = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, schema, prefix)) from error
    assert isinstance(found, schema)
    return found


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"{key}: no such key{hint} (known: {', '.join(known)})"


def unknown_attack_key(key: str) -> str:
    """The message for ``attacks.<name>.<setting>`` that cannot be set."""
    name = key.split(".")[1]
    known = [f"attacks.{name}.{setting}" for setting in plugins.declared(plugins.ATTACKS, name)]
    if key in known or not known:
        return f"{key}: attack {name!r} is not chosen; add 'attacks=[{name}]'"
    return unknown_key(key, known)


def one_line(error: OmegaConfBaseException, schema: type = Run, prefix: str = "") -> str:
    """OmegaConf's message as one line: the key after ``prefix``, what was given, what is allowed."""
    text = str(error).splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        key = prefix + text.rsplit(": ", 1)[-1]
        return f"{key}: not given; add {key}=…"
    key = prefix + (getattr(error, "full_key", None) or "configuration")
    if "' not in '" in text:  # Key 'stear' not in 'Run'
        inside = key.rpartition(".")[0]
        return unknown_key(key, [k for k in keys_of(schema, prefix) if k.rpartition(".")[0] == inside])
    if "is not Optional" in text:
        return f"{key}: got null; give it a value, or leave it out"
    given = getattr(error, "value", None) or (text.split("'")[1] if text.count("'") >= 2 else text)
    for hint, wanted in WANTED.items():
        if hint in text:
            return f"{key}: got {show(given)}, allowed is {wanted.format(key)}"
    return f"{key}: {text}"


def _plain(config: DictConfig | Mapping[str, object]) -> Mapping[str, object]:
    """The values, with what they refer to put in."""
    try:
        found = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    return cast(Mapping[str, object], found)


def _checked(settings: Settings) -> Settings:
    settings.attacks = {
        name: dataclasses.asdict(plugin(plugins.ATTACKS, name, values)) for name, values in settings.attacks.items()
    }
    check(settings)
    return settings
