"""results.json, typed: what a run or a judgement measured, one class per part.

Stages make their part, reports read it; nobody digs by string. The classes read, check and write the file, and
``schema()`` is its JSON Schema. Keys that they do not name are kept as they are, so that newer files and an attack's
own findings pass through. A stage that did not run leaves its key out; nothing is ever null.

Schema 1 (an attack's ``of``, a control ``never``, no ``kind``) is read as well.
``python -m rmu_exp.record.results`` writes results.schema.json, beside this module, anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from rmu_exp.settings import ROLES, Role
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import write_atomic

NAME = "results.json"
SCHEMA = 2
OLD_ROLES: dict[str, Role] = {f"{world}_{role}": role for world in ("atlas", "lore") for role in ROLES}
OLD_ROLES |= {"wmdp_bio": "forget", "wmdp_cyber": "forget", "mmlu": "general"}

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Interval = tuple[float, float]
State = Literal["base", "unlearned"]


class Part(BaseModel):
    """A part of results.json; further keys are kept."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants", protected_namespaces=())


class Corrected(Part):
    """An accuracy by scores without answer bias, with Wilson's 95 % interval."""

    acc: Fraction
    ci95: Interval


ATTACKED = {"corrected": "corrected accuracy", "probability": "answer probability"}
"""What attacks are searched for by, and its words."""


class Accuracy(Part):
    """The accuracy, in 0..1, with its standard error and Wilson's 95 % interval, over ``n`` questions.

    Attributes:
        prob: mean probability of the right option after the prompt.
        mass: mean probability of all options together.
        answers: option to how often it was chosen, the most frequent ones.
        choice_prob: mean probability of the right option among the options; intervals are bootstrapped over questions.
        metrics: lm-eval's own metrics by name, with lm-eval's standard errors (a filter stands after a comma).
    """

    acc: Fraction
    stderr: float
    ci95: Interval
    n: Annotated[int, Field(ge=1)]
    corrected: Corrected | None = None
    prob: Fraction | None = None
    prob_ci95: Interval | None = None
    choice_prob: Fraction | None = None
    choice_prob_ci95: Interval | None = None
    mass: Fraction | None = None
    answers: dict[str, Count] = {}
    metrics: dict[str, float] = {}
    metrics_stderr: dict[str, float] = {}


class Control(Accuracy):
    """The accuracy of a control, with the p of the exact binomial test against chance."""

    p_chance: float | None = None


class McNemar(Part):
    """McNemar's exact test over the same questions: correct before and wrong after, the reverse, p."""

    lost: Count
    gained: Count
    p: float


class QaRow(Part):
    """One lm-eval task, or a group and its ``tasks``, before and after.

    Attributes:
        p_chance: of the exact binomial test that the unlearned model answers as well as the better of the next two.
        chance: accuracy of a blind guess.
        blind: of the best answer that does not look at the question, such as the letter that is right most often.
        correction: how answer bias is taken out of ``corrected``: rotations, or other questions.
        role: what its questions are for, as ``data.questions`` says.
    """

    tasks: list[str] | None = None
    base: Accuracy
    unlearned: Accuracy | None = None
    mcnemar: McNemar | None = None
    p_chance: float | None = None
    chance: Fraction
    blind: Fraction | None = None
    correction: str | None = None
    role: Role | None = None

    def of(self, state: State) -> Accuracy | None:
        """The accuracy of the base or the unlearned model; None: not asked."""
        return self.base if state == "base" else self.unlearned


Qa = dict[str, QaRow]


class Measured(Part):
    """lm-eval's metrics of a task whose questions are not each right or wrong; ``acc`` where it has one."""

    acc: float | None = None
    stderr: float | None = None
    n: Count
    metrics: dict[str, float]
    metrics_stderr: dict[str, float] = {}


class MeasuredRow(Part):
    """Such a task, or a group and its ``tasks``, before and after."""

    tasks: list[str] | None = None
    base: Measured
    unlearned: Measured | None = None
    role: Role | None = None

    def of(self, state: State) -> Measured | None:
        """The metrics of the base or the unlearned model; None: not asked."""
        return self.base if state == "base" else self.unlearned


class Pruned(Part):
    """Why a search stopped the run early, after so many questions per task."""

    questions: Count
    qa: Qa
    because: str


class Perplexity(Part):
    """Perplexity on a text source, over so many predicted tokens."""

    perplexity: float
    tokens: Count
    nll_stderr: float | None = None


class PerplexityRow(Part):
    """Perplexity on one source, before and after."""

    base: Perplexity
    unlearned: Perplexity | None = None

    def of(self, state: State) -> Perplexity | None:
        """That of the base or the unlearned model; None: not measured."""
        return self.base if state == "base" else self.unlearned


class Rate(Part):
    """A mean with its 95 % interval; of a measure per token, over so many ``tokens`` (its interval is by texts)."""

    mean: float
    ci95: Interval
    tokens: Count | None = None


class Both(Part):
    """A number of the base and of the unlearned model."""

    base: float
    unlearned: float


class Damage(Part):
    """How far the unlearned model's next tokens are from the base's, by kind of text: neutral, retain, forget.

    Attributes:
        kl: KL(base || unlearned) in nats, per token.
        agreement: the part of the tokens at which both find the same token likeliest.
        perplexity: on each source, of the texts that were compared (at most ``length`` tokens of each); on the sources
            of eval.perplexity of all texts, whole.
        texts: how many of each kind were compared.
        sources: kind to the names of its sources.
    """

    kl: dict[str, Rate]
    agreement: dict[str, Rate]
    perplexity: dict[str, Both]
    texts: dict[str, Count] = {}
    sources: dict[str, list[str]] = {}
    length: Count | None = None


class Rates(Part):
    """What one model wrote on one role's ``n`` prompts, greedily, in numbers.

    Attributes:
        empty, refusal: the part of the outputs without a word, with a refusal phrase.
        match: of those whose prompt has a right answer, the part that begins with it.
        repeat: mean length of the longest repeated n-gram, in tokens.
        distinct: n to the mean of different n-grams over all n-grams.
        nll: mean negative log-likelihood per token of the output under the base model, in nats.
    """

    n: Annotated[int, Field(ge=1)]
    empty: Rate
    refusal: Rate
    match: Rate | None = None
    repeat: float
    distinct: dict[str, float]
    nll: float


class RatesRow(Part):
    """What base and unlearned model wrote on one role's prompts."""

    base: Rates
    unlearned: Rates


class RippleLevel(Part):
    """Accuracy lost at one distance from what was forgotten.

    Attributes:
        distance: mean distance of the questions from the forget texts, where it was measured.
        lost: accuracy of the base minus accuracy of the unlearned model, with a bootstrap interval over questions.
    """

    name: str
    n: Annotated[int, Field(ge=1)]
    base: Fraction
    unlearned: Fraction
    lost: Rate
    chance: Fraction | None = None
    distance: float | None = None


class Ripple(Part):
    """Accuracy lost against distance from what was forgotten, nearest first; ``by``: how the distance is known."""

    by: Literal["construction", "hidden states"]
    levels: list[RippleLevel]


class BeforeAfter(Part):
    """The unlearned model's accuracy on some questions, asked plainly and under attack."""

    before: Fraction
    after: Fraction


class Intervals(Part):
    """The 95 % intervals of :class:`BeforeAfter`."""

    before: Interval
    after: Interval


class CurveData(Part):
    """The lines of one figure: title of a panel to name of a line to its points (x, y)."""

    title: str
    x: str
    y: str
    panels: Annotated[dict[str, dict[str, list[tuple[float, float]]]], Field(min_length=1)]
    chance: float | None = None


class Depth(Part):
    """Unlearning depth, see :mod:`rmu_exp.attacks.depth`.

    Attributes:
        n: questions that were put.
        lost, oracle, restored: for each layer, nats per token of the answer, mean over questions.
        apart: the same as ``oracle`` on other questions, whose answers the oracle knows.
        score: 0 (all is there) to 1 (as in the oracle), over the ``scored`` questions whose answer the oracle lacks.
    """

    threshold: float
    n: Count
    lost: list[float]
    restored: list[float]
    oracle: list[float] | None = None
    apart: list[float] | None = None
    scored: Count | None = None
    score: Rate | None = None


class AttackEntry(Part):
    """What one attack or probe found; what is special to it stands in further keys.

    ``fingerprint``: of the models, texts and questions it was run on; ``error``: why it has no accuracy;
    ``inconclusive``: why it shows nothing, such as that it did not learn what it was taught; ``control``: name to
    accuracy, or to what was found although there is nothing to find; ``budget``: steps, queries, seconds.

    Attributes:
        forget_acc: plain accuracy, as in ``before`` and ``after``.
        before, after: the unlearned model on the scored facts, asked plainly and under attack.
        chosen_by: under attack on the facts that the attack was chosen by.
        general: plain accuracy on general questions, asked where attacks are searched for.
        depth: what the depth of unlearning is measured by, in place of an accuracy.
    """

    settings: dict[str, JsonValue] = {}
    fingerprint: str = Field("", validation_alias=AliasChoices("fingerprint", "of"))
    error: str | None = None
    inconclusive: str | None = None
    forget_acc: BeforeAfter | None = None
    ci95: Intervals | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    chance: Fraction | None = None
    p_chance: float | None = None
    before: Accuracy | None = None
    after: Accuracy | None = None
    chosen_by: Accuracy | None = None
    general: BeforeAfter | None = None
    depth: Depth | None = None
    control: dict[str, Annotated[Control | JsonValue, Field(union_mode="left_to_right")]] = {}
    budget: dict[str, JsonValue]
    curves: dict[str, CurveData] = {}

    @model_validator(mode="before")
    @classmethod
    def _oracle_of_schema_1(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(control := values.get("control"), dict):
            return values | {"control": {re.sub("^never(?=,|$)", "oracle", name): v for name, v in control.items()}}
        return values

    @property
    def controls(self) -> dict[str, Control]:
        """The controls that have an accuracy."""
        return {name: value for name, value in self.control.items() if isinstance(value, Control)}

    @model_validator(mode="after")
    def _whole(self) -> AttackEntry:
        if self.forget_acc is not None and None in (self.ci95, self.n, self.chance):
            raise ValueError("forget_acc without ci95, n or chance")
        return self


class RunInfo(Part):
    """What was run, on what. A judgement (``kind`` judge) has ``unlearned`` and ``changed_tensors``.

    ``kind`` delta, which no file has: a Delta without its run; ``steer`` (in the unit of ``steering``), ``alpha``:
    one value per topic; ``settings``: the method's own; ``changed``: settings that are not the published ones.
    """

    kind: Literal["train", "judge", "delta"] = "train"
    model: str
    topics: list[str]
    seed: Count | None = None
    unlearned: str | None = None
    changed_tensors: list[str] = []
    layer: Count | None = None
    steer: list[float] = []
    steering: Literal["relative", "absolute"] = "absolute"
    alpha: list[float] = []
    method: str | None = None
    settings: dict[str, JsonValue] = {}
    faithful: bool | None = None
    forget: list[str] = []
    retain: list[str] = []
    trained_parameters: list[str] = []
    changed: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _kind_of_schema_1(cls, values: object) -> object:
        if isinstance(values, dict) and "kind" not in values and "unlearned" in values:
            return {"kind": "judge"} | values
        return values

    @model_validator(mode="after")
    def _whole(self) -> RunInfo:
        needs = {"train": ("seed", "method", "layer"), "judge": ("seed", "unlearned"), "delta": ()}
        if missing := [key for key in needs[self.kind] if getattr(self, key) is None]:
            raise ValueError(f"{missing[0]} is missing")
        return self


class Training(Part):
    """What training took, and how far it got.

    Attributes:
        lr: the learning rate.
        norms: topic to the median norm of the frozen model's forget activations at the layer, first tokens left out.
        targets: topic to the length of its forget target.
        reached: topic to how far its forget activations went towards the target, at the last look: 0 nowhere, 1 there.
        kl_budget: KL(base || updated) at which training was to end, nats per token on neutral text.
        kl, kl_step: what it is at the kept weights, and at which step they are; a fraction lies between two steps.
        kl_scale: for a method that acts at once: how many times its own step was taken.
        kl_reached: whether the budget was reached.
        seconds_measuring: what measuring it took, of ``seconds``.
    """

    steps: Count
    seconds: float
    seconds_per_step: float
    peak_memory_bytes: Count
    seconds_saving: float = 0.0
    lr: float | None = None
    norms: dict[str, float] = {}
    targets: dict[str, float] = {}
    reached: dict[str, float] = {}
    kl_budget: float | None = None
    kl: float | None = None
    kl_step: float | None = None
    kl_scale: float | None = None
    kl_reached: bool | None = None
    seconds_measuring: float | None = None


Word = Literal["forgot", "partly", "nothing happened", "broken", "not measured"]


class Verdict(Part):
    """Whether unlearning worked, in one word and a few sentences, by the rules of :mod:`rmu_exp.report.verdict`."""

    word: Word
    sentences: list[str]


class Published(Part):
    """Accuracies that somebody published for this model."""

    source: str
    questions: str | None = None
    base: dict[str, float] = {}
    unlearned: dict[str, float] = {}

    def of(self, state: State) -> dict[str, float]:
        """Task to the accuracy of the base or the unlearned model."""
        return self.base if state == "base" else self.unlearned


class Git(Part):
    """The checkout that ran: its commit, and the sha256 of what differs from it."""

    commit: str
    dirty: bool
    diff: str | None = None


class Provenance(Part):
    """Where the numbers come from."""

    config: dict[str, JsonValue] = {}
    config_hash: str
    seeds: dict[str, Count] = {}
    versions: dict[str, str]
    git: Git | None = None
    hardware: dict[str, JsonValue] = {}
    command: str
    data_hashes: dict[str, str] = {}
    question_hashes: dict[str, str] = {}
    model_revision: str | None = None
    model_digest: str = ""
    model_file: dict[str, str] = {}
    delta_digest: str = ""


class Results(Part):
    """The content of results.json."""

    schema_number: Annotated[Literal[1, 2], Field(validation_alias="schema", serialization_alias="schema")] = 2
    run: RunInfo
    provenance: Provenance | None = None
    verdict: Verdict | None = None
    train: Training | None = None
    qa: Qa = {}
    measured: dict[str, MeasuredRow] = {}
    pruned: Pruned | None = None
    perplexity: dict[str, PerplexityRow] = {}
    damage: Damage | None = None
    samples: dict[str, RatesRow] = {}
    ripple: Ripple | None = None
    probe: dict[str, dict[str, Annotated[list[float], Field(min_length=1)]]] = {}
    activations: dict[str, dict[str, list[float]]] = {}
    attacks: dict[str, AttackEntry] = {}
    published: list[Published] = []

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: object) -> object:
        """In the file the two kinds of rows stand together, in the order of their names."""
        if isinstance(values, dict) and isinstance(qa := values.get("qa"), dict):
            rows = [(k, v) for k, v in qa.items() if isinstance(v, dict) and isinstance(v.get("base"), dict)]
            apart = {k: v for k, v in rows if "chance" not in v and "metrics" in v["base"]}
            if apart:
                rest = {k: v for k, v in qa.items() if k not in apart}
                return values | {"qa": rest, "measured": apart | values.get("measured", {})}
        return values

    @model_validator(mode="after")
    def _roles(self) -> Results:
        """Files without the role ``general`` are older: their tasks' names say it, or the rest is."""
        for qa in (self.qa, self.pruned.qa if self.pruned else Qa()):
            if not any(row.role == "general" for row in qa.values()):
                for name, row in qa.items():
                    row.role = row.role or OLD_ROLES.get(name)
            roles = {row.role for row in qa.values()} - {None}
            if roles and "general" not in roles:
                inside = {task for row in qa.values() for task in row.tasks or ()}
                for name, row in qa.items():
                    whole = row.tasks is None or not any(qa[t].role for t in row.tasks if t in qa)
                    row.role = row.role or ("general" if whole and name not in inside else None)
        return self

    def content(self) -> dict[str, JsonValue]:
        """As results.json has it: what is not there is left out."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        if measured := values.pop("measured", {}):
            values["qa"] = values.get("qa", {}) | measured
        return {"schema": SCHEMA} | values | {"schema": SCHEMA, "run": {"kind": self.run.kind, **values["run"]}}

    def save(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(file, json.dumps(self.content(), indent=2) + "\n")

    @property
    def asked(self) -> Qa:
        """What was asked: everything, or the part after which a search stopped the run."""
        return self.qa or (self.pruned.qa if self.pruned else {})


def load(file: Path) -> Results:
    """The content of a results.json.

    Raises UserError: it cannot be read, is not JSON, or does not have the form of one.
    """
    try:
        return Results.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        reason = _reason(error)
    except RecursionError:
        reason = "nested too deeply"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
    raise UserError(f"{file}: damaged ({reason}); remove it")


def _reason(error: ValidationError) -> str:
    """The outermost thing that is wrong, in a few words."""
    first = min(error.errors(include_url=False), key=lambda e: (len(e["loc"]), list(map(str, e["loc"]))))
    line = " ".join(": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]])).split())
    return line if len(line) <= 120 else f"{line[:60]} … {line[-56:]}"


def schema() -> dict[str, JsonValue]:
    """The JSON Schema of results.json: what a report, a table or another program may rely on."""
    found = Results.model_json_schema(by_alias=True)
    rows = found["properties"]["qa"]
    rows["additionalProperties"] = {"anyOf": [rows["additionalProperties"], {"$ref": "#/$defs/MeasuredRow"}]}
    del found["properties"]["measured"]
    return found


if __name__ == "__main__":
    Path(__file__).with_name("results.schema.json").write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
