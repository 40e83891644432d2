"""The settings of a training run and of a judgement: typed, checked, and explained by the sentence under each field.

Hydra composes ``conf/`` and the command line onto these dataclasses; :mod:`rmu_exp.config.parse` makes the objects.
``--help`` and ``docs/configuration.md`` are made from the declarations. Knows no method and no attack.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting, show, without_result

Role = Literal["forget", "adjacent", "general"]
ROLES: tuple[Role, ...] = ("forget", "adjacent", "general")

AUTO, AUTO_STEER = "auto", 6.5  # steer=auto: this many times the median norm, whatever steering.kind is
TEXTS, PROMPTS = 16, 16  # per kind and role, where nothing else is given
NOT_SETTINGS = ("hydra", "kind", "digest", "command")  # stand beside the settings


@dataclass
class Published:
    """Accuracies that somebody published for a model, reported beside the measured ones."""

    source: str = setting(MISSING)
    """Where they were published."""
    questions: str = setting("")
    """Which version of the question set they belong to."""
    base: dict[str, float] = setting({})
    """lm-eval task or group to the base model's accuracy in 0..1."""
    unlearned: dict[str, float] = setting({})
    """The same for the unlearned model."""


@dataclass
class Model:
    """The model to unlearn from."""

    name: str | None = setting(None)
    """`smollm2_135m`, `lore`, or a hub id such as `HuggingFaceH4/zephyr-7b-beta`."""
    path: str | None = setting(None)
    """A local folder in Hugging Face format, or a GGUF file; wins over the name."""
    adapter: str | None = setting(None)
    """A folder with an adapter of peft, which is merged into the model: the two together are the base."""
    revision: str | None = setting(None)
    """Branch, tag or commit on the hub; null: the newest."""
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16", "float16"))
    """auto: float32 on a CPU, the checkpoint's own on a GPU."""
    device: str = setting("auto")
    """auto, cpu, cuda, cuda:1, …"""
    device_map: str | None = setting(None, choices=("auto",))
    """auto: spread each model over all GPUs that can be seen, layer by layer (accelerate); null: one device."""
    oracle: str | None = setting(None, changes_result=False)
    """A folder or hub id of a model that never saw the forget topics: a control of the attacks."""
    threads: int | None = setting(None, least=1)
    """Threads on a CPU; equal bits need equal numbers of them. null: as many as the process may use."""
    deterministic: bool = setting(False)
    """On a GPU, only kernels that give the same bits each time; slower, and an error where there is none."""
    memory: float | None = setting(None, above=0, changes_result=False)
    """Gigabytes that a run may use on a CPU beyond the loaded program; batches shrink to fit. null: all there is."""
    trust_remote_code: bool = setting(False)
    """Run Python code that comes with the checkpoint. Off unless you turn it on."""
    parameters: list[str] | None = setting(None)
    """What layers.parameters is by default; null: the MLP output matrix (faithful Mixtral: as published)."""
    published: list[Published] = setting([])
    """Published accuracies, reported beside the measured ones."""
    published_settings: dict[str, Any] = setting({})
    """The settings that the published accuracies belong to, by dotted key."""


@dataclass
class Layers:
    """Which tensors are trained, relative to `layer`."""

    span: int = setting(3, least=0)
    """How many layers are trained: `layer` and the ones below it; 0: all that the method loads."""
    parameters: list[str] | None = setting(None)
    """Names inside a layer as on disk, globs allowed; all; mlp; null: model.parameters."""
    lora: bool = setting(False)
    """Train LoRA adapters on these matrices instead, merged into the Delta."""
    rank: int = setting(16, least=1)
    """Rank of the adapters."""
    rank_alpha: int = setting(16, least=1)
    """LoRA's scale, as peft's lora_alpha: adapters are multiplied by rank_alpha / rank."""
    param_ids: list[int] | None = setting(None)
    """The published code's form: indices into a layer's parameters; translated to names and logged."""
    experts: Any = setting("all")
    """Of a mixture: all, used (those that forget texts are routed to, layer by layer), or a list of indices."""

    def check(self) -> None:
        """Refuse what names no experts."""
        listed = isinstance(self.experts, list) and self.experts and all(type(e) is int for e in self.experts)
        if self.experts not in ("all", "used") and not listed:
            raise UserError(f"layers.experts: got {show(self.experts)}, allowed is all, used, or a list of indices")


@dataclass
class Steering:
    """The forget target."""

    kind: str = setting("relative", choices=("relative", "absolute"))
    """relative: steer counts in median norms of the frozen model's forget activations; absolute: as in the paper."""
    distribution: str = setting("uniform", choices=("uniform", "normal"))
    """Entries of u before normalising: uniform on [0, 1) as published, or normal."""


@dataclass
class Retain:
    """The retain loss."""

    kind: str = setting("mse", choices=("mse",))
    """mse: squared distance to the frozen activations."""


@dataclass
class Questions:
    """What questions are for, by role; each entry is anything that eval.tasks takes."""

    forget: list[str] = setting([])
    """Questions about the forget topics, which attacks try to get back."""
    adjacent: list[str] = setting([])
    """Questions about neighbouring topics, which should stay as well."""
    general: list[str] = setting([])
    """Questions about general knowledge, which should stay; []: every other entry of eval.tasks."""

    @property
    def all(self) -> list[str]:
        """Every entry once, role by role."""
        return list(dict.fromkeys((*self.forget, *self.adjacent, *self.general)))

    def roles(self, asked: Sequence[str]) -> dict[str, Role]:
        """The role of each entry of ``asked`` that has one."""
        found: dict[str, Role] = dict.fromkeys(self.general or asked, "general")
        found |= dict.fromkeys(self.adjacent, "adjacent")
        found |= dict.fromkeys(self.forget, "forget")
        return {name: found[name] for name in asked if name in found}

    def check(self) -> None:
        """Refuse an entry with two roles."""
        given = [(role, name) for role in ROLES for name in dict.fromkeys(getattr(self, role))]
        for role, name in given:
            if others := [other for other, same in given if same == name and other != role]:
                raise UserError(f"data.questions.{role}: {name} is in data.questions.{others[0]} too; give it one role")


@dataclass
class Data:
    """Forget and retain corpora, and the questions that belong to them."""

    name: str = setting("local")
    """What the report calls these data."""
    topics: list[str] | None = setting(None)
    """Names of the forget topics; null: the file names."""
    forget: list[str] = setting([])
    """A source per topic: a file (.jsonl, .json, .txt, .csv, .parquet), a folder, or a hub dataset ORG/NAME:CONFIG."""
    retain: list[str] = setting([])
    """One source for all topics, or one per topic."""
    neutral: str | None = setting(None)
    """Held-out ordinary text, a source as in data.retain: damage is measured on it."""
    field: list[str] = setting(["text"])
    """The field or column that is the text, or a template as "{question} {answer}"; of several the first that fits."""
    limit: int | None = setting(None, least=1)
    """Only the first so many texts of each source; null: all."""
    min_len: int = setting(0, least=0)
    """Texts of this many characters or fewer are left out."""
    answer: str | None = setting(None)
    """In texts that contain this, methods over next tokens count only what comes after it; null: whole texts."""
    max_length: int = setting(512, least=1)
    """Texts are truncated to this many tokens; the published loop uses 768 for forget texts after the first topic."""
    on_bad_line: str = setting("error", choices=("error", "skip"))
    """What to do with a line that cannot be read: stop, or skip and count it."""
    questions: Questions = setting(Questions, changes_result=False)
    attacked: int | None = setting(None, least=8, changes_result=False)
    """Most questions per forget topic that attacks ask, on facts drawn at random; null: all."""

    def check(self) -> None:
        """Refuse topics and corpora whose numbers do not match."""
        for key, names in (("data.topics", self.topics or []), ("data.forget", self.forget)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{key}: {twice[0]} is there twice; name each once")
        if self.forget and self.topics is not None and len(self.topics) != len(self.forget):
            raise UserError(f"data.topics: got {len(self.topics)} names for {len(self.forget)} forget corpora")


@dataclass
class Eval:
    """What base and unlearned model are evaluated on."""

    tasks: list[str] | None = setting(None)
    """Tasks of lm-eval, YAML files or folders of them, files of questions; null: all of data.questions; []: nothing."""
    limit: int | float | None = setting(None, above=0)
    """Questions per task, or below 1 the part of them that is asked; null: all."""
    draw: int | None = setting(None, least=0)
    """Seed with which these are drawn at random, the same for both models; null: the first ones."""
    corrected: bool = setting(True)
    """Give each accuracy without answer bias, too: letters asked in every rotation, others against other questions."""
    include_path: list[str] = setting([])
    """Folders with YAML files of one's own tasks, as lm-eval's --include_path."""
    num_fewshot: int | None = setting(None, least=0)
    """Solved examples before each question, where a task does not say 0; null: as many as each task says."""
    chat_template: bool = setting(False)
    """Put prompts into the tokenizer's chat template, as lm-eval's --apply_chat_template."""
    system_prompt: str | None = setting(None)
    """What stands before every prompt, or is the chat's system message."""
    bootstrap: int = setting(100_000, least=0)
    """Draws for the standard error of metrics that are no means (F1, perplexity); lm-eval's number. 0: none."""
    backend: str = setting("fast")
    """fast, or stock (lm-eval's own class), in memory; or a backend of lm-eval's (hf, vllm, …) with export=true."""
    backend_args: dict[str, Any] = setting({})
    """For a backend of lm-eval's, such as {parallelize: true}."""
    batch_size: int = setting(64, least=1)
    """Questions per forward pass; fast sizes its batches by itself."""
    perplexity: Any = setting(None)
    """Held-out texts to measure perplexity on, whole: a source as in data.retain, or a list; null: not measured."""
    damage: int | None = setting(None, least=0)
    """Texts each (neutral, retain, forget) to compare both models' next tokens on; null: 16 with data.neutral, or 0."""
    samples: Any = setting(None)
    """Prompts per role that both models answer, or a file of prompts; null: 16 with data.neutral, or 0."""
    tokens: int = setting(32, least=1)
    """Tokens that are written after a prompt."""
    ripple: str = setting("auto", choices=("auto", "texts", "off"))
    """Accuracy lost by distance: auto, as the world knows it; texts, from the forget texts by hidden states; off."""

    @property
    def held_out(self) -> list[str]:
        """The sources in `perplexity`."""
        given = [] if self.perplexity is None else self.perplexity
        return list(given) if isinstance(given, (list, tuple)) else [str(given)]

    def check(self) -> None:
        """Refuse a limit that is no number of questions, sources that are no words, a number of prompts below 0."""
        if isinstance(self.limit, float) and self.limit > 1 and not self.limit.is_integer():
            raise UserError(f"eval.limit: got {self.limit}, allowed is a whole number, or a part below 1, or null")
        if self.draw is not None and self.limit is None:
            raise UserError("eval.draw: draws eval.limit questions of each task, and all are asked; add eval.limit=…")
        if not all(isinstance(source, str) and source for source in self.held_out):
            raise UserError(f"eval.perplexity: got {show(self.perplexity)}, allowed is a source, or a list of them")
        wrong = isinstance(self.samples, bool) or not isinstance(self.samples, (int, str, NoneType))
        if wrong or self.samples == "" or (isinstance(self.samples, int) and self.samples < 0):
            raise UserError(f"eval.samples: got {show(self.samples)}, allowed is 0 or more, a file of prompts, or null")


@dataclass
class Train:
    """The training loop."""

    lr: float | None = setting(None, above=0)
    """Learning rate of AdamW; null: 1 % of the root mean square of the trained tensors (faithful: 5e-5)."""
    batch_size: int = setting(4, least=1)
    """Texts per step, of the forget and of the retain corpus each."""
    max_batches: int = setting(80, least=1)
    """Steps, counted over all topics together."""
    schedule: str = setting("constant", choices=("constant", "linear"))
    """Learning rate over the steps: constant as published, or linear, down to nothing at the end."""
    optimizer: str = setting("adamw", choices=("adamw", "adamw_8bit", "paged_adamw_8bit"))
    """The published loop's AdamW, or bitsandbytes' with moments in 8 bits, paged: moved off the GPU when it is full."""
    checkpointing: bool = setting(False, changes_result=False)
    """Run layers again on the way back in place of keeping what is inside of them: less memory, more time."""
    sam: float = setting(0.0, least=0)
    """SAM's ρ: the forget loss is differentiated so far up its own gradient from the weights; 0: at the weights."""
    sign_mask: bool = setting(False)
    """Leave out of the forget loss's gradient what has the other sign than the rest's, weight by weight."""
    folds: int = setting(1, least=1)
    """Layered unlearning: stage i of so many forgets the first i folds of each forget corpus and retains the others."""
    check_every: int = setting(0, least=0)
    """Steps between checks on questions that should stay, with the full model in memory; 0: none."""
    check_questions: int = setting(32, least=4)
    """How many questions those are."""
    collapse: float = setting(0.3, least=0)
    """Training stops when it has cost more than this of the accuracy on them."""
    kl_budget: float | None = setting(None, above=0)
    """Training ends where KL to the base on data.neutral is this many nats per token; null: it is not measured."""
    save_every: float | None = setting(None, least=0, changes_result=False)
    """Seconds between two snapshots to resume from; null: as often as costs no more than 1 % of the time."""

    @property
    def around(self) -> list[str]:
        """What is chosen of the settings that go with any loss that is descended on."""
        return [key for key in ("optimizer", "sam", "sign_mask", "folds") if getattr(self, key) != getattr(Train, key)]


@dataclass
class Tracking:
    """Weights & Biases, or trackio."""

    kind: str = setting("off", choices=("wandb", "trackio", "off"))
    """wandb, trackio or off."""
    project: str | None = setting(None)
    """Project; null: WANDB_PROJECT with W&B, or rmu_exp."""
    entity: str | None = setting(None)
    """W&B user or team; null: your default one."""
    mode: str = setting("auto", choices=("auto", "online", "offline"))
    """auto: online when W&B finds a key, offline otherwise."""
    name: str | None = setting(None)
    """Run name; null: WANDB_NAME, or in a sweep what was varied, or made from model, method, layer, steer and seed."""
    group: str | None = setting(None)
    """Runs of one group are shown together; in a sweep, the sweep's folder."""
    tags: list[str] = setting([])
    """Tags; with W&B those of WANDB_TAGS are added."""
    artifact: str = setting("delta", choices=("delta", "export", "off"))
    """What is uploaded as an artifact: the Delta, the full checkpoint of export=true, or nothing."""
    system: bool = setting(True)
    """Whether the use of processor, memory and GPU is recorded."""
    wait: float = setting(60.0, above=0)
    """Seconds that the end of a run may wait for the tracker; what is not uploaded by then `wandb sync` uploads."""


@dataclass
class Attacker:
    """An attacker that is searched for (experiment=worst_case)."""

    trials: int = setting(30, least=1)
    """Attacks to try, over all starts together."""
    bound: float = setting(0.9, least=0, most=1)
    """The part of the unlearned model's general accuracy that an attack must leave."""
    general: int = setting(0, least=0)
    """General questions to ask under each attack; 0: none, and there is no bound."""


@dataclass
class Share:
    """What trials that differ only in steer, alpha or other settings of the loss compute once; same results."""

    when: str = setting("auto", choices=("auto", "always", "never"))
    """auto: in a sweep."""
    gigabytes: float = setting(8.0, least=0)
    """Space in the cache folder for activations; 0: none are kept."""


@dataclass
class Experiment:
    """What a training run and a judgement have in common."""

    kind: ClassVar[str]

    seed: int = setting(0, least=0, most=4_294_967_295)  # what every library takes
    """Seed of every random choice."""
    output: str = setting("", changes_result=False)
    """Folder of the results; in a sweep, the folder that holds one folder per trial."""
    model: Model = setting(Model)
    data: Data = setting(Data)
    eval: Eval = setting(Eval)
    attacks: dict[str, Any] = setting({}, changes_result=False)
    """Chosen attacks and probes, each with its settings."""
    tracking: Tracking = setting(Tracking, changes_result=False)

    @property
    def topics(self) -> list[str]:
        """Names of the forget topics, one for each entry of `data.forget`."""
        return self.data.topics or topic_names(self.data.forget)

    @property
    def texts_compared(self) -> int:
        """How many texts each both models are compared on; 0: damage is not measured."""
        return self._unless_given(self.eval.damage, TEXTS)

    @property
    def prompts_asked(self) -> int | str:
        """How many prompts of each role both models answer, or the file of the prompts; 0: none."""
        given = self.eval.samples
        return given if isinstance(given, str) else self._unless_given(given, PROMPTS)

    def _unless_given(self, given: int | None, usual: int) -> int:
        return given if given is not None else usual if self.data.neutral else 0

    @property
    def tasks_by_role(self) -> dict[str, list[str]]:
        """Role to the entries that ask for it: forget, adjacent, general, those that there are."""
        questions = self.data.questions
        roles = questions.roles(list(dict.fromkeys((*questions.all, *(self.eval.tasks or ())))))
        found = {role: [entry for entry, its in roles.items() if its == role] for role in ROLES}
        return {str(role): entries for role, entries in found.items() if entries}

    @property
    def other_tasks(self) -> list[str]:
        """The tasks that do not ask about the forget topics."""
        return [task for task in self.eval.tasks or () if task not in self.data.questions.forget]

    def check(self) -> None:
        """Ask the questions of every role where the settings do not say what is asked."""
        if self.eval.tasks is None:
            self.eval.tasks = self.data.questions.all

    @property
    def digest(self) -> str:
        """sha256 over every setting that can change a result (not where it is written or shown)."""
        return digest_of(dataclasses.asdict(self))


@dataclass
class Run(Experiment):
    """One training run."""

    kind: ClassVar[str] = "train"

    layer: int = setting(MISSING, least=0)
    """Layer whose activations are steered, counted from 0."""
    steer: Any = setting(MISSING)
    """Length of the forget target, in the unit of steering.kind: a number, one per topic, or auto (6.5 medians)."""
    alpha: Any = setting(MISSING)
    """Weight of the retain loss: a number, or one per topic."""
    export: bool = setting(False, changes_result=False)
    """Write the full unlearned checkpoint to model/ as well."""
    layers: Layers = setting(Layers)
    steering: Steering = setting(Steering)
    retain: Retain = setting(Retain)
    method: Any = setting({})
    """The method's own settings: `name`, and what its file in unlearning/methods/ declares."""
    train: Train = setting(Train)
    share: Share = setting(Share, changes_result=False)

    @property
    def faithful(self) -> bool:
        """Whether it is the published loop to the letter."""
        return bool(getattr(self.method, "faithful", False))

    @property
    def steers_by_length(self) -> bool:
        """Whether steer is the length of a vector; ablation takes a factor."""
        return bool(getattr(self.method, "target", "") != "ablate")

    @property
    def parameters(self) -> list[str] | None:
        """Names of the trained tensors inside a layer; None: the MLP's output matrix."""
        return self.layers.parameters or self.model.parameters

    def trained_layers(self, targets: list[int], depth: int) -> list[int]:
        """Indices of the layers with trained tensors, lowest first, of a loss about ``targets`` in ``depth`` layers."""
        if self.layers.span == 0:
            return list(range(depth))
        return sorted({i for t in targets for i in range(max(0, t - self.layers.span + 1), t + 1)})

    def check(self) -> None:
        """Refuse settings that do not go together; make steer and alpha one number per topic."""
        super().check()
        if not self.data.forget:
            raise UserError("data.forget: no corpus given; add 'data.forget=[a.jsonl,b.jsonl]'")
        if len(self.data.retain) not in (1, len(self.data.forget)):
            allowed = f"1, or one per topic ({len(self.data.forget)})"
            raise UserError(f"data.retain: got {len(self.data.retain)} corpora, allowed is {allowed}")
        if not self.model.name and not self.model.path:
            raise UserError("model.name: not given; add model.name=ORG/NAME, or model.path=FOLDER")
        if self.steer != AUTO:
            self.steer = per_topic("steer", self.steer, self.topics)
        elif not self.steers_by_length:
            raise UserError(
                "steer: got 'auto', which is a length; method.target=ablate takes a factor, such as steer=2"
            )
        self.alpha = per_topic("alpha", self.alpha, self.topics)
        if self.train.kl_budget is not None and not self.data.neutral:
            given = f"got {self.train.kl_budget}"
            raise UserError(f"train.kl_budget: {given}, but there is no text to measure KL on; add data.neutral=FILE")
        if self.faithful and self.train.schedule != "constant":
            schedule = self.train.schedule
            raise UserError(f"train.schedule: got {schedule!r}, but method.faithful=true has a constant rate")
        if self.faithful and self.train.around:
            raise UserError(f"train.{self.train.around[0]}: the published loop (method.faithful=true) has none of it")
        if self.eval.backend not in ("fast", "stock") and not self.export:
            raise UserError(f"eval.backend: {self.eval.backend} evaluates the exported checkpoint; add export=true")
        if self.eval.backend not in ("fast", "stock") and self.model.device_map:
            own = "'eval.backend_args={parallelize: true}'"
            raise UserError(f"model.device_map: eval.backend={self.eval.backend} places models itself; use {own} alone")


@dataclass
class Judge(Experiment):
    """One judgement of a model that exists, beside the model that it was made from."""

    kind: ClassVar[str] = "judge"

    unlearned: str = setting(MISSING)
    """The model to judge: a run's folder (brings base model and data), a checkpoint's or an adapter's, or a hub id."""
    base: str | None = setting(None)
    """The model it was made from: a folder or hub id; null: the one of `model`, or of the run."""
    attacker: Attacker = setting(Attacker, changes_result=False)

    def check(self) -> None:
        """Refuse what only a training run can do."""
        super().check()
        if self.eval.backend not in ("fast", "stock"):
            raise UserError(f"eval.backend: got {self.eval.backend!r}, allowed here is fast, stock")
        if self.attacker.general and not self.general_tasks:
            raise UserError("attacker.general: needs questions; give data.questions.general, or attacker.general=0")

    @property
    def general_tasks(self) -> list[str]:
        """The tasks that show what an attack must leave."""
        adjacent = self.data.questions.adjacent
        return self.data.questions.general or [task for task in self.other_tasks if task not in adjacent]


def is_result_key(key: str) -> bool:
    """Whether a setting, by its dotted key, can change what is computed before the attacks, which have fingerprints."""
    parts = key.split(".")
    return not _WITHOUT_RESULT.intersection(".".join(parts[:n]) for n in range(1, len(parts) + 1))


_WITHOUT_RESULT = without_result(Run) | without_result(Judge) | {*NOT_SETTINGS, "model.never"}  # never: now oracle


def result_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Those of some nested settings that can change a result."""
    return {
        key: result_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if is_result_key(f"{prefix}{key}")
    }


def digest_of(values: Mapping[str, Any]) -> str:
    """sha256 over those of the settings, as config.yaml has them, that can change a result."""
    return hashlib.sha256(json.dumps(result_settings(values), sort_keys=True).encode()).hexdigest()


def per_topic(key: str, value: object, topics: list[str]) -> list[float]:
    """A number, or one per topic, as one float per topic."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = [float(v) for v in given if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(given) or not all(math.isfinite(v) and v >= 0 for v in numbers):
        other = ", or auto" if key == "steer" else ""
        raise UserError(f"{key}: got {show(value)}, allowed is a number ≥ 0, or one per topic{other}")
    if len(numbers) == 1:
        return numbers * len(topics)
    if len(numbers) != len(topics):
        named = f"{len(topics)}: {', '.join(topics)}"
        raise UserError(f"{key}: got {len(numbers)} values, allowed is one number, or one per topic ({named})")
    return numbers


def topic_names(sources: list[str]) -> list[str]:
    """Short distinct names for corpora: the file's or dataset's last part without its endings."""
    names: list[str] = []
    for source in sources:
        name = source.rstrip("/").split("/")[-1].split(":")[-1].split(".")[0] or "topic"
        while name in names:
            name += "_"
        names.append(name)
    return names
