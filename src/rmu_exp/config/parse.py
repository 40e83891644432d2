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
WANTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}
NEEDED = ("layer", "steer", "alpha")
Settings = TypeVar("Settings", Run, Judge)


def register() -> None:
    """Give Hydra the schemas that conf/config.yaml and conf/judge.yaml start from."""
    for schema in (Run, Judge):
        node = OmegaConf.structured(schema)
        for key in FREE:
            if (part := OmegaConf.select(node, key)) is not None:
                OmegaConf.set_struct(part, False)
        ConfigStore.instance().store("run_schema" if schema is Run else "judge_schema", node)


def parse(config: DictConfig) -> Run:
    """A composed configuration as a checked :class:`Run`.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range or an impossible combination.
    """
    _refuse_unknown(config, Run)
    if missing := [key for key in NEEDED if OmegaConf.is_missing(config, key) or _select(config, key) is None]:
        them = "it" if len(missing) == 1 else "them"
        wanted = " ".join(f"{key}=…" for key in missing)
        raise UserError(f"{', '.join(missing)}: not given, and {_model(config)} has no preset for {them}; add {wanted}")
    run = _object(config, Run)
    name = run.method.get("name") if isinstance(run.method, dict) else run.method
    run.method = plugin(plugins.METHODS, str(name), run.method)
    return _checked(run)


def parse_judge(config: DictConfig) -> Judge:
    """A composed configuration as a checked :class:`Judge`. Raises as :func:`parse`."""
    _refuse_unknown(config, Judge)
    if OmegaConf.is_missing(config, "unlearned"):
        raise UserError("unlearned: not given; add unlearned=… (a run's folder, a checkpoint's folder, or a hub id)")
    return _checked(_object(config, Judge))


def stored(values: Mapping[str, Any]) -> Run | Judge:
    """The settings that a run directory holds, of earlier versions too. Raises as :func:`parse`."""
    values = dict(values)
    if isinstance(model := values.get("model"), dict):
        model = {"oracle" if key == "never" else key: value for key, value in model.items()}
        preset = model.pop("preset", None) or {}
        values["model"] = {"parameters": preset.get("parameters")} | model
    if isinstance(steering := values.get("steering"), dict) and steering.get("kind") == "fixed":
        values["steering"] = {"kind": "absolute", "distribution": steering.get("distribution", "uniform")}
    judging = "unlearned" in values
    try:
        config = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Judge if judging else Run), values))
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    return parse_judge(config) if judging else parse(config)


def plugin(group: str, name: str, values: object) -> Any:
    """The checked ``Settings`` of a method or an attack. Raises as :func:`parse`."""
    prefix = "method." if group == plugins.METHODS else f"{group}.{name}."
    if group == plugins.METHODS and name not in plugins.files(group):
        raise UserError(f"method.name: got {name!r}, allowed is {', '.join(plugins.files(group))}")
    schema = plugins.schema(group, name)
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.')}: got {show(values)}, allowed is a group of keys")
    known = [prefix + f.name for f in dataclasses.fields(schema)]
    for key in values:
        if f"{prefix}{key}" not in known:
            raise UserError(unknown_key(f"{prefix}{key}", known) + f" for {name}" * (group == plugins.METHODS))
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, prefix)) from error
    check(made, prefix)
    return made


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


def one_line(error: OmegaConfBaseException, prefix: str = "") -> str:
    """OmegaConf's message as one line: the key after ``prefix``, what was given, what is allowed."""
    text = str(error).splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        key = prefix + text.rsplit(": ", 1)[-1]
        return f"{key}: not given; add {key}=…"
    key = prefix + (getattr(error, "full_key", None) or "configuration")
    if "' not in '" in text:  # Key 'stear' not in 'Run'
        inside, schema = key.rpartition(".")[0], Judge if "'Judge'" in text else Run
        return unknown_key(key, [k for k in keys_of(schema) if k.rpartition(".")[0] == inside])
    if "is not Optional" in text:
        return f"{key}: got null; give it a value, or leave it out"
    if "is not a ListConfig" in text:
        return f"{key}: allowed is a list such as '{key}=[a,b]'"
    for kind, wanted in WANTED.items():
        if kind in text:
            given = text.split("'")[1] if text.count("'") >= 2 else text
            return f"{key}: got {show(getattr(error, 'value', None) or given)}, allowed is {wanted}"
    return f"{key}: {text}"


def _object(config: DictConfig, schema: type[Settings]) -> Settings:
    try:
        made = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    assert isinstance(made, schema)
    return made


def _checked(settings: Settings) -> Settings:
    settings.attacks = {
        name: dataclasses.asdict(plugin(plugins.ATTACKS, name, values)) for name, values in settings.attacks.items()
    }
    check(settings)
    return settings


def _select(config: DictConfig, key: str) -> object:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error


def _model(config: DictConfig) -> str:
    known = (config.model[key] for key in ("path", "name") if not OmegaConf.is_missing(config.model, key))
    return str(next(filter(None, known), "the model"))


def _refuse_unknown(config: DictConfig, schema: type, prefix: str = "") -> None:
    """Hydra's ``+key=value`` adds keys that nothing reads."""
    known, groups = [f.name for f in dataclasses.fields(schema)], groups_of(schema)
    for key in map(str, config):
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", [prefix + name for name in known]))
        if key in groups:
            group = _select(config, key)
            if not isinstance(group, DictConfig):
                raise UserError(f"{prefix}{key}: got {show(group)}, allowed is a group of keys")
            _refuse_unknown(group, groups[key], f"{prefix}{key}.")
