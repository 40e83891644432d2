"""The Run: one typed, checked object that carries every setting of a run.

Hydra composes ``conf/`` and the command line onto the dataclasses below, which gives every key its type;
:func:`parse` makes the object and refuses what does not fit together. The sentence under a field is its documentation:
``python train.py --help`` and ``docs/configuration.md`` are made from it. This module reads no file
and imports nothing heavy, so that a mistyped key is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rmu_exp.errors import UserError
from rmu_exp.unlearn import catalog

AUTO = "auto"  # steer: taken from the model's own norms
DTYPES = ("auto", "float32", "bfloat16", "float16")
BAD_LINE = ("error", "skip")
DISTRIBUTIONS = ("uniform", "normal")
SCHEDULES = ("constant", "linear")
SHARING = ("auto", "always", "never")
TRACKERS = ("wandb", "off")
TRACKING_MODES = ("auto", "online", "offline")


@dataclass
class Preset:
    """What is known to work for one model; every value is a default that the command line overrides."""

    source: str = ""
    """Where the values come from; "untuned" when nobody has published any."""
    layer: Any = None
    """The layer whose activations are steered, counted from 0."""
    steer: Any = None
    """Length of the forget target c·u."""
    alpha: Any = None
    """Weight of the retain loss."""
    lr: float | None = None
    """Learning rate of AdamW."""
    batch_size: int = 4
    """Texts a step, of the forget and of the retain corpus each."""
    max_batches: int = 80
    """Steps, counted over all topics together."""
    min_len: int = 0
    """Texts of this many characters or fewer are left out."""
    parameters: list[str] | None = None
    """Names of the trained tensors inside a layer; null: the MLP's output matrix."""
    span: int = 3
    """How many layers are trained; 0: all that the method loads (see layers.span)."""
    lora: bool = False
    """Train LoRA adapters (see layers.lora)."""
    seed: int = 0
    """Seed of every random choice."""
    schedule: str = "constant"
    """Learning rate over the steps: constant or linear."""
    faithful: bool = False
    """Train as the published loop does, to the letter (see method.faithful)."""


ANY = "any"  # the entry of a method's presets that fits every model
PRESET = tuple(f.name for f in dataclasses.fields(Preset))


def preset(key: str, *, _root_: Any) -> Any:
    """``${preset:KEY}``: a default that the method has for this model, or for any; else the model's own."""
    if "method" not in _root_ or "model" not in _root_:
        return None  # Hydra looks at each file alone before it puts them together
    mine = _root_.method.get("presets") or {}
    for entry in (mine.get(str(_root_.model.get("name"))), mine.get(ANY)):
        if entry is not None and entry.get(key) is not None:
            return entry[key]
    return _root_.model.preset[key] if key in PRESET else None


OmegaConf.register_new_resolver("preset", preset, replace=True)


@dataclass
class Published:
    """Accuracies that somebody published for a model and its preset, shown beside the measured ones."""

    source: str = MISSING
    """Where they stand."""
    questions: str = ""
    """Which version of the question set they belong to."""
    base: dict[str, float] = field(default_factory=dict)
    """lm-eval task or group to accuracy in 0..1, before."""
    unlearned: dict[str, float] = field(default_factory=dict)
    """The same, after."""


@dataclass
class Model:
    """The model to unlearn from."""

    name: str | None = None
    """`lore`, or a hub id such as `HuggingFaceH4/zephyr-7b-beta`."""
    path: str | None = None
    """A local folder in Hugging Face format; wins over the name."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: the newest."""
    dtype: str = "auto"
    """auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    never: str | None = None
    """A folder or hub id of a model that never knew the forget topics: the control of the attacks."""
    threads: int | None = None
    """Threads on a CPU; equal bits need equal numbers of them. null: as many as the process may use."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off unless you turn it on."""
    preset: Preset = field(default_factory=Preset)
    """Defaults of layer, steer, alpha and training for this model."""
    published: list[Published] = field(default_factory=list)
    """Published accuracies, shown beside the measured ones."""


@dataclass
class Layers:
    """Which tensors are trained, relative to `layer`."""

    span: Any = 3
    """How many layers are trained: `layer` and the ones below it; 0: all that the method loads."""
    parameters: list[str] | None = None
    """Names inside a layer as on disk, globs allowed; null: the MLP output matrix (faithful Mixtral: as published)."""
    lora: Any = False
    """Train LoRA adapters on these matrices, merged into the Delta, in their place."""
    rank: int = 16
    """Rank of the adapters."""
    rank_alpha: int = 16
    """LoRA's scale, as peft's lora_alpha: adapters are multiplied by rank_alpha / rank."""
    param_ids: list[int] | None = None
    """The published code's form: indices into a layer's parameters; translated to names and logged."""


@dataclass
class Steering:
    """The forget target."""

    kind: str = "fixed"
    """fixed: the target is steer · u."""
    factor: float = 3.0
    """With steer=auto: how many times the frozen model's mean activation norm on a topic's forget texts it is."""
    distribution: str = "uniform"
    """Entries of u before normalising: uniform on [0, 1) as published, or normal."""


@dataclass
class Retain:
    """The retain loss."""

    kind: str = "mse"
    """mse: squared distance to the frozen activations."""


@dataclass
class Data:
    """Forget and retain corpora, and the questions that belong to them."""

    name: str = "local"
    """What the report calls these data."""
    topics: list[str] | None = None
    """Names of the forget topics; null: the file names."""
    forget: list[str] = field(default_factory=list)
    """One source a topic: a .jsonl, .txt or .parquet file (.gz too), or a hub dataset org/name:config:split."""
    retain: list[str] = field(default_factory=list)
    """One source for all topics, or one a topic."""
    min_len: int = 0
    """Texts of this many characters or fewer are left out."""
    answer: str | None = None
    """Methods over next tokens count only what follows this, in texts that have it; null: whole texts."""
    max_length: int = 512
    """Tokens a text is cut to; the published loop cuts forget texts after the first topic to 768."""
    on_bad_line: str = "error"
    """error, or skip (and count)."""
    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks that belong to these data."""
    forget_tasks: list[str] = field(default_factory=list)
    """Those of them that ask by letters about the forget topics: what attacks try to get back."""


@dataclass
class Eval:
    """What is asked, before and after."""

    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks or groups; an empty list asks nothing."""
    limit: int | None = None
    """Questions a task; null: all."""
    backend: str = "fast"
    """fast, or stock (lm-eval's own class), in memory; or a backend of lm-eval's (hf, vllm, …) with export=true."""
    backend_args: dict[str, Any] = field(default_factory=dict)
    """For a backend of lm-eval's, such as {parallelize: true}."""
    batch_size: int = 64
    """Questions a forward pass; fast sizes its batches by itself."""
    perplexity: str | None = None
    """Held-out texts to measure perplexity on, a source as in data.retain; null: not measured."""


@dataclass
class Train:
    """The training loop."""

    lr: float | None = None
    """Learning rate of AdamW."""
    batch_size: int = 4
    """Texts a step, of the forget and of the retain corpus each."""
    max_batches: int = 80
    """Steps, counted over all topics together."""
    schedule: str = "constant"
    """Learning rate over the steps: constant as published, or linear, down to nothing at the end."""


@dataclass
class Tracking:
    """Weights & Biases."""

    kind: str = "wandb"
    """wandb or off."""
    project: str = "rmu_exp"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: your default one."""
    mode: str = "auto"
    """auto (online when a key is found), online or offline."""
    name: str | None = None
    """Run name; null: made from model, method, layer, steer and seed."""
    group: str | None = None
    """Runs of one group are shown together; in a sweep, the sweep's folder."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""


@dataclass
class Share:
    """What trials that differ in steer, alpha or other settings of the loss compute once for all; same results."""

    when: str = "auto"
    """auto (in a sweep), always or never."""
    gigabytes: float = 8.0
    """Space in the cache folder for activations; 0: none are kept."""


@dataclass
class Run:
    """One unlearning run."""

    layer: Any = MISSING
    """Layer whose activations are steered, counted from 0."""
    steer: Any = MISSING
    """Length of the forget target c·u: a number, one per topic, or auto (see steering.factor)."""
    alpha: Any = MISSING
    """Weight of the retain loss: a number, or one per topic."""
    seed: int = 0
    """Seed of every random choice."""
    export: bool = False
    """Write the full unlearned checkpoint to model/ as well."""
    output: str = ""
    """Folder of the run; in a sweep, the folder that holds one folder a trial."""
    model: Model = field(default_factory=Model)
    layers: Layers = field(default_factory=Layers)
    steering: Steering = field(default_factory=Steering)
    retain: Retain = field(default_factory=Retain)
    method: Any = field(default_factory=dict)
    """The method's own settings: `name`, and what its file in unlearn/methods/ declares."""
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    attacks: dict[str, Any] = field(default_factory=dict)
    """Chosen attacks and probes, each with its settings."""
    train: Train = field(default_factory=Train)
    tracking: Tracking = field(default_factory=Tracking)
    share: Share = field(default_factory=Share)

    @property
    def topics(self) -> list[str]:
        """Names of the forget topics, one for each entry of `data.forget`."""
        return self.data.topics or topic_names(self.data.forget)

    @property
    def faithful(self) -> bool:
        """Whether it is the published loop to the letter."""
        return bool(getattr(self.method, "faithful", False))

    def trained_layers(self, targets: list[int], depth: int) -> list[int]:
        """Indices of the layers with trained tensors, lowest first.

        Args:
            targets: the layers that the method's loss is about.
            depth: number of layers loaded.
        """
        if self.layers.span == 0:
            return list(range(depth))
        return sorted({i for t in targets for i in range(max(0, t - self.layers.span + 1), t + 1)})

    @property
    def parameters(self) -> list[str] | None:
        """Names of the trained tensors inside a layer; None: the MLP's output matrix."""
        return self.layers.parameters or self.model.preset.parameters

    @property
    def digest(self) -> str:
        """sha256 over every setting that can change a result (not where it is written or shown)."""
        return digest(self)


@dataclass
class Judge:
    """One judgement of a model that exists, against the model that it was made from."""

    unlearned: str = MISSING
    """The model to judge: a run's folder (which brings its base model and data), a checkpoint's folder, or a hub id."""
    base: str | None = None
    """The model it was made from: a folder or hub id; null: the one of `model`, or of the run."""
    seed: int = 0
    """Seed of every random choice."""
    output: str = ""
    """Folder of the results; in a sweep, the folder that holds one folder a judgement."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    attacks: dict[str, Any] = field(default_factory=dict)
    """Chosen attacks and probes, each with its settings."""
    tracking: Tracking = field(default_factory=Tracking)

    @property
    def topics(self) -> list[str]:
        """Names of the forget topics, one for each entry of `data.forget`."""
        return self.data.topics or topic_names(self.data.forget)

    @property
    def digest(self) -> str:
        """sha256 over every setting that can change a result (not where it is written or shown)."""
        return digest(self)


def digest(run: Run | Judge) -> str:
    """sha256 over what can change the results of the stages before the attacks, which look after themselves."""
    values = dataclasses.asdict(run)
    for key in ("output", "export", "tracking", "attacks", "share"):
        values.pop(key, None)
    values["model"].pop("never")
    values["data"].pop("forget_tasks")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def topic_names(sources: list[str]) -> list[str]:
    """Short distinct names for corpora: the file's or dataset's last part without its endings."""
    names: list[str] = []
    for source in sources:
        name = source.rstrip("/").split("/")[-1].split(":")[-1].split(".")[0] or "topic"
        while name in names:
            name += "_"
        names.append(name)
    return names


def parse(config: DictConfig) -> Run:
    """A composed configuration as a checked :class:`Run`.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range or an impossible combination.
    """
    _refuse_unknown(config, Run, "")
    try:
        for key in ("layer", "steer", "alpha"):
            if OmegaConf.is_missing(config, key) or OmegaConf.select(config, key) is None:
                raise UserError(f"{key}: not given, and {_model_name(config)} has no preset for it; add {key}=…")
        run = OmegaConf.to_object(config)
        assert isinstance(run, Run)
        run.method = _method(config.method)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    _check(run)
    return run


def _method(config: DictConfig) -> Any:
    """The method's settings as the dataclass that its file declares."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    name, presets = values.get("name"), values.pop("presets", None) or {}
    if name not in catalog.names():
        raise UserError(f"method.name: got {name!r}, allowed is {', '.join(catalog.names())}")
    schema = catalog.settings(name)
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
    _refuse_unknown(config, Judge, "")
    try:
        if OmegaConf.is_missing(config, "unlearned"):
            raise UserError(
                "unlearned: not given; add unlearned=… (a run's folder, a checkpoint's folder, or a hub id)"
            )
        judge = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    assert isinstance(judge, Judge)
    if judge.seed < 0:
        raise UserError(f"seed: got {judge.seed}, allowed is 0 or more")
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
        raise UserError(f"{key}: got {_show(value)}, allowed is a number ≥ 0, or one per topic{other}")
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
    if run.data.topics is not None and len(run.data.topics) != len(run.data.forget):
        raise UserError(f"data.topics: got {len(run.data.topics)} names for {len(run.data.forget)} forget corpora")
    if len(run.data.retain) not in (1, len(run.data.forget)):
        raise UserError(
            f"data.retain: got {len(run.data.retain)} corpora, allowed is 1, or one per topic ({len(run.data.forget)})"
        )
    if not run.model.name and not run.model.path:
        raise UserError("model.name: not given; add model.name=ORG/NAME, or model.path=FOLDER")
    if not isinstance(run.layer, int) or isinstance(run.layer, bool):
        raise UserError(f"layer: got {_show(run.layer)}, allowed is a whole number, 0 or more")
    if run.steer != AUTO:
        run.steer = per_topic("steer", run.steer, run.topics)
    if not (math.isfinite(run.steering.factor) and run.steering.factor > 0):
        raise UserError(f"steering.factor: got {run.steering.factor}, allowed is a number > 0")
    run.alpha = per_topic("alpha", run.alpha, run.topics)
    if run.train.lr is None:
        raise UserError("train.lr: not given and the model has no preset; add train.lr=5e-5")
    if not isinstance(run.layers.span, int) or isinstance(run.layers.span, bool):
        raise UserError(f"layers.span: got {_show(run.layers.span)}, allowed is a whole number, 0 or more")
    if not isinstance(run.layers.lora, bool):
        raise UserError(f"layers.lora: got {_show(run.layers.lora)}, allowed is true or false")
    at_least = {"layer": 0, "seed": 0, "layers.span": 0, "train.batch_size": 1, "train.max_batches": 1}
    at_least |= {"data.min_len": 0, "data.max_length": 1, "eval.batch_size": 1}
    at_least |= {"layers.rank": 1, "layers.rank_alpha": 1}
    for key, least in at_least.items():
        if _get(run, key) is not None and _get(run, key) < least:
            raise UserError(f"{key}: got {_get(run, key)}, allowed is {least} or more")
    if not (math.isfinite(run.train.lr) and run.train.lr > 0):
        raise UserError(f"train.lr: got {run.train.lr}, allowed is a number > 0")
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


def _check_choices(run: Run | Judge, choices: dict[str, tuple[str, ...]]) -> None:
    for key, allowed in choices.items():
        if _get(run, key) not in allowed:
            raise UserError(f"{key}: got {_get(run, key)!r}, allowed is {', '.join(allowed)}")


def _check_parts(run: Run | Judge) -> None:
    """What a run and a judgement have in common."""
    if run.eval.limit is not None and run.eval.limit < 1:
        raise UserError(f"eval.limit: got {run.eval.limit}, allowed is 1 or more, or null for all questions")
    choices = {"model.dtype": DTYPES, "data.on_bad_line": BAD_LINE, "tracking.kind": TRACKERS}
    _check_choices(run, choices | {"tracking.mode": TRACKING_MODES})
    if run.attacks:
        from rmu_exp.attacks import registry

        run.attacks = registry.checked(run.attacks)


def _get(run: Run | Judge, dotted: str) -> Any:
    value: Any = run
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _refuse_unknown(config: DictConfig, schema: type, prefix: str) -> None:
    """Hydra's ``+key=value`` adds keys that nothing reads."""
    known = {f.name: f.default_factory for f in dataclasses.fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", [prefix + name for name in known]))
        nested = known[key]
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            _refuse_unknown(config[key], nested, f"{prefix}{key}.")


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"{key}: no such key{hint} (known: {', '.join(known)})"


def keys_of(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, groups included."""
    keys: list[str] = []
    for f in dataclasses.fields(schema):
        keys.append(prefix + f.name)
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            keys += keys_of(f.default_factory, f"{prefix}{f.name}.")
    return keys


_WANTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def one_line(error: OmegaConfBaseException) -> str:
    text = str(error).splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        key = text.rsplit(": ", 1)[-1]
        return f"{key}: not given; add {key}=…"
    key = getattr(error, "full_key", None) or "configuration"
    if "' not in '" in text:  # Key 'stear' not in 'Run'
        inside, schema = key.rpartition(".")[0], Judge if "'Judge'" in text else Run
        return unknown_key(key, [k for k in keys_of(schema) if k.rpartition(".")[0] == inside])
    if "is not a ListConfig" in text:
        return f"{key}: allowed is a list such as '{key}=[a,b]'"
    for kind, wanted in _WANTED.items():
        if kind in text:
            return f"{key}: got {_show(getattr(error, 'value', None) or _quoted(text))}, allowed is {wanted}"
    return f"{key}: {text}"


def _quoted(text: str) -> str:
    return text.split("'")[1] if text.count("'") >= 2 else text
