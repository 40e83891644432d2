"""The Run: one typed, checked object that carries every setting of a run.

Hydra composes ``conf/`` and the command line onto the dataclasses below, which gives every key its type;
:mod:`rmu_exp.config.parse` makes the object and refuses what does not fit together. The sentence under a field is its
documentation: ``python train.py --help`` and ``docs/configuration.md`` are made from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

NOT_IN_DIGEST = ("output", "export", "tracking", "attacks", "share")
NOT_IN_DIGEST_OF = {"model": ("oracle", "memory"), "data": ("forget_tasks",), "train": ("save_every",)}
AUTO = "auto"  # steer: taken from the model's own norms


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
    oracle: str | None = None
    """A folder or hub id of a model that never knew the forget topics: the control of the attacks."""
    threads: int | None = None
    """Threads on a CPU; equal bits need equal numbers of them. null: as many as the process may use."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits each time; slower, and an error where there is none."""
    memory: float | None = None
    """Gigabytes a run may take on a CPU over what the program holds; then batches get smaller. null: all there is."""
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
    check_every: int = 0
    """Steps between two looks at questions that should stay, with the full model in memory; 0: none."""
    check_questions: int = 32
    """How many questions those are."""
    collapse: float = 0.3
    """Training stops when it has cost more of the accuracy on them than this."""
    save_every: float | None = None
    """Seconds between two snapshots to resume from; null: as often as costs no more than 1 % of the time."""


@dataclass
class Tracking:
    """Weights & Biases."""

    kind: str = "off"
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
    wait: float = 60.0
    """Seconds that the end of a run may wait for W&B; what is not uploaded by then `wandb sync` uploads."""


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
    """Folder of the results."""
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
    return digest_of(dataclasses.asdict(run))


def digest_of(settings: Mapping[str, Any]) -> str:
    """The digest of settings as config.yaml has them."""
    values = {key: value for key, value in settings.items() if key not in NOT_IN_DIGEST}
    for group, keys in NOT_IN_DIGEST_OF.items():
        if isinstance(values.get(group), Mapping):
            values[group] = {k: v for k, v in values[group].items() if k not in keys}
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
