"""Questions, through lm-evaluation-harness: a model in memory in, right or wrong for each question out.

lm-eval's own task definitions are used (and lore's, which are ordinary lm-eval YAML); only the folders
that hold the wanted tasks are indexed, because indexing all of them takes many seconds.
This module knows nothing of unlearning.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rmu_exp.evaluation import catalogue, statistics
from rmu_exp.evaluation.catalogue import quiet, right_option
from rmu_exp.evaluation.correction import Asked, Correction, best_blind, correction
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.record.results import Accuracy, Measured, MeasuredRow, Qa
from rmu_exp.record.store import Store, cached, fingerprint
from rmu_exp.settings import Eval, Model, Role
from rmu_exp.support.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

IN_MEMORY = ("fast", "stock")
HUGGING_FACE = ("hf", "hf-auto", "huggingface")  # lm-eval's names of its own class
METRICS = ("acc", "acc_norm")  # the first of them that a task has is its accuracy
_HASHES = ("doc_hash", "prompt_hash", "target_hash")  # lm-eval's own, of each question
MOST_PICKED = 8  # answers in a histogram
V = TypeVar("V")
_PER_QUESTION = (
    "correct",
    "chosen",
    "targets",
    "corrected",
    "prob",
    "mass",
    "picked",
    "shares",
    "questions",
    "options",
)


@dataclass
class Answers:
    """What one model answered, by task."""

    correct: dict[str, list[int]] = field(default_factory=dict)  # 1 or 0 for each question, in the task's order
    chosen: dict[str, list[int]] = field(default_factory=dict)  # index of the chosen option
    targets: dict[str, list[int]] = field(default_factory=dict)  # index of the right option
    corrected: dict[str, list[int]] = field(default_factory=dict)  # 1 or 0 by the scores without answer bias
    prob: dict[str, list[float]] = field(default_factory=dict)  # probability of the right option after the prompt
    mass: dict[str, list[float]] = field(default_factory=dict)  # that of all options together
    picked: dict[str, list[str]] = field(default_factory=dict)  # the chosen option in words
    correction: dict[str, str] = field(default_factory=dict)  # how answer bias was taken out
    blind: dict[str, float] = field(default_factory=dict)  # accuracy of the best answer to no question in particular
    chance: dict[str, float] = field(default_factory=dict)  # accuracy of a blind guess
    groups: dict[str, list[str]] = field(default_factory=dict)  # group to its tasks, largest group first
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of documents, prompts and right options
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # lm-eval's, of tasks and groups
    stderrs: dict[str, dict[str, float]] = field(default_factory=dict)  # lm-eval's standard errors of them
    sizes: dict[str, int] = field(default_factory=dict)  # how many questions were asked, of tasks and groups
    shares: dict[str, list[list[float]]] = field(default_factory=dict)  # probability of each option among the options
    questions: dict[str, list[str]] = field(default_factory=dict)  # the questions' texts
    options: dict[str, list[list[str]]] = field(default_factory=dict)  # the options in words

    def tasks_of(self, name: str) -> list[str]:
        """The tasks of a group, or the task itself."""
        return self.groups.get(name, [name])

    def pooled(self, values: Mapping[str, list[V]], name: str) -> list[V]:
        """Values of a task's questions, or of those of all tasks of a group; none where a task has none."""
        tasks = self.tasks_of(name)
        return [v for t in tasks for v in values[t]] if all(t in values for t in tasks) else []

    def accuracy(self, name: str) -> Accuracy:
        """What results.json says of a task or a group."""
        prob, targets = self.pooled(self.prob, name), self.pooled(self.targets, name)
        among = [row[target] for row, target in zip(self.pooled(self.shares, name), targets, strict=False)]
        correct, corrected = self.pooled(self.correct, name), self.pooled(self.corrected, name)
        found = statistics.measured(correct, corrected, prob, among if prob else ())
        if prob:
            found.mass = statistics.mean(self.pooled(self.mass, name))
        found.answers = dict(Counter(self.pooled(self.picked, name)).most_common(MOST_PICKED))
        found.metrics, found.metrics_stderr = self.metrics.get(name, {}), self.stderrs.get(name, {})
        return found

    @property
    def with_accuracy(self) -> list[str]:
        """Groups and tasks of which each question was answered right or wrong, as lm-eval counts it."""
        names = [name for name in (*self.groups, *self.correct) if all(t in self.correct for t in self.tasks_of(name))]
        return [name for name in names if self._agrees(name)]

    def _agrees(self, name: str) -> bool:
        """Whether a group's pooled accuracy is the one that lm-eval gives it."""
        theirs = self.metrics.get(name, {})
        right = self.pooled(self.correct, name)
        pooled = sum(right) / len(right)
        return not theirs or any(math.isclose(theirs[m], pooled, abs_tol=1e-9) for m in METRICS if m in theirs)

    def first(self, count: int) -> Answers:
        """The answers to the first questions of each task."""
        parts = {name: {t: c[:count] for t, c in getattr(self, name).items()} for name in _PER_QUESTION}
        return replace(self, **parts)

    def mean(self, values: Mapping[str, float], name: str) -> float:
        """A task's value, or the mean over a group's questions."""
        sizes = {t: len(self.correct[t]) for t in self.tasks_of(name)}
        return sum(values[t] * size for t, size in sizes.items()) / sum(sizes.values())

    def blindly(self, name: str) -> float | None:
        """Accuracy of the best answer to no question in particular; None: some task has none."""
        return self.mean(self.blind, name) if all(t in self.blind for t in self.tasks_of(name)) else None


Ask = Callable[[Path], Answers]
"""Asks the checkpoint in a folder."""


@quiet()
def ask(model: Any, tokenizer: Any, settings: Eval, journal: Store | None = None, first: int | None = None) -> Answers:
    """Ask a causal language model in memory the questions of lm-eval's tasks.

    Args:
        settings: its ``backend`` says by which class: ``fast`` is :class:`rmu_exp.evaluation.engine.Engine`, ``stock``
            lm-eval's own, with the same answers.
        journal: where ``fast`` keeps the batches that are done, and finds them.
        first: only so many of each task's questions that are asked; None: all of these.

    Raises:
        UserError: an unknown task, or one that cannot be asked.
        RunError: the questions cannot be loaded.
    """
    from lm_eval.models.huggingface import HFLM

    if settings.backend == "fast":
        from rmu_exp.evaluation.engine import Engine

        return _ask(Engine(pretrained=model, tokenizer=tokenizer, journal=journal), settings, first)
    return _ask(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size), settings, first)


def refuse(settings: Eval, tokenizer: Any, context: int) -> None:
    """Refuse what cannot work before anything is trained, and load the questions.

    Args:
        context: tokens that the model takes.

    Raises:
        UserError: an unknown backend, no chat template or none for a system message, and what
            :func:`rmu_exp.evaluation.catalogue.loaded` refuses.
        RunError: the questions cannot be loaded.
    """
    if settings.backend not in IN_MEMORY:
        from lm_eval.models import MODEL_MAPPING

        if settings.backend not in MODEL_MAPPING:
            known = ", ".join((*IN_MEMORY, *MODEL_MAPPING))
            raise UserError(f"eval.backend: got {settings.backend!r}, allowed is {known}")
    if settings.chat_template and not getattr(tokenizer, "chat_template", None):
        raise UserError("eval.chat_template: the model's tokenizer has no chat template; leave it out")
    if settings.chat_template and settings.system_prompt:
        turns = [{"role": "system", "content": settings.system_prompt}, {"role": "user", "content": "a"}]
        try:
            tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:  # whatever a template says; lm-eval would leave the system message out
            reason = f"the tokenizer's chat template takes no system message ({first_line(error)})"
            raise UserError(f"eval.system_prompt: {reason}; leave it out") from error
    for name, task in catalogue.loaded(settings, anew=True)["tasks"].items():
        asked = task.eval_docs if callable(task.config.custom_dataset) else ()
        for option in {o for doc in asked for o in doc.get("choices") or () if len(o) > context}:  # a token is a letter
            if (tokens := len(tokenizer(option)["input_ids"])) > context:
                raise UserError(
                    f"eval.tasks: {name}: the option {option[:30]}… has {tokens} tokens, the model takes {context}"
                )
        _refuse_prompts(name, task, settings, tokenizer)


def _refuse_prompts(name: str, task: Any, settings: Eval, tokenizer: Any) -> None:
    """Refuse a task of which lm-eval cannot make the first prompt: with examples, or in a chat template."""

    def chat(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        own = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **own))

    templated = settings.chat_template
    try:
        with quiet(), catalogue.seeded():
            task.build_all_requests(
                limit=1, system_instruction=settings.system_prompt, apply_chat_template=templated,
                fewshot_as_multiturn=templated, chat_template=chat if templated else None,
            )  # fmt: skip
    except Exception as error:  # whatever the functions of a task raise
        key = "eval.num_fewshot" if task.get_config("num_fewshot") else "eval.tasks"
        reason = f"lm-eval cannot make the prompts of {name} ({first_line(error)})"
        raise UserError(f"{key}: {reason}; leave {'it' if key == 'eval.tasks' else 'examples'} out") from error


@quiet()
def ask_backend(folder: Path, settings: Eval, model: Model, device: str, dtype: torch.dtype) -> Answers:
    """Ask a checkpoint on disk by one of lm-eval's own backends, which may spread it over many devices.

    Args:
        settings: ``backend`` is lm-eval's name of it, ``backend_args`` go to it as they are.

    Raises:
        UserError: no such backend, what it needs is not installed, or arguments that it does not know.
    """
    from lm_eval.api.registry import get_model

    given = dict(settings.backend_args)
    given |= {"pretrained": str(folder), "batch_size": settings.batch_size}
    given = {"trust_remote_code": model.trust_remote_code} | given
    if settings.backend in HUGGING_FACE:
        given = {"device": device, "dtype": str(dtype).removeprefix("torch.")} | given
    try:
        wrapped = get_model(settings.backend)(**given)
    except (ImportError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"eval.backend: {settings.backend} cannot be used ({first_line(error)})") from error
    return _ask(wrapped, settings)


def _ask(wrapped: Any, settings: Eval, first: int | None = None) -> Answers:
    import lm_eval

    loaded = catalogue.loaded(settings)
    chat, system = settings.chat_template, settings.system_prompt
    which = {name: catalogue.places(task, settings)[:first] for name, task in loaded["tasks"].items()}
    with catalogue.seeded():
        found = lm_eval.evaluate(
            lm=wrapped, task_dict=loaded, samples=which, bootstrap_iters=settings.bootstrap, log_samples=True,
            system_instruction=system, apply_chat_template=chat, fewshot_as_multiturn=chat,
        )  # fmt: skip
    answers = _answers(found, loaded["tasks"])
    if settings.corrected:
        _correct(wrapped, loaded["tasks"], found["samples"], answers)
    return answers


def _correct(
    wrapped: Any, tasks: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]], answers: Answers
) -> None:
    """Ask what the corrected scores need, and add what they say."""
    from lm_eval.api.instance import Instance

    plans: dict[str, Correction] = {}
    for name in answers.correct:
        if tasks[name].multiple_input:
            continue  # one text after several prompts: no option to compare with itself
        asked = [question.asked for question in _questions(tasks[name], samples[name])]
        if plan := correction(asked, tasks[name].doc_to_text):
            plans[name] = plan
    pairs = list(dict.fromkeys(pair for plan in plans.values() for pair in plan.pairs))
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    known = dict(zip(pairs, (value for value, _ in wrapped.loglikelihood(requests, disable_tqdm=True)), strict=True))
    for name, plan in plans.items():
        rows = zip(plan.scores(known), answers.targets[name], strict=True)
        answers.corrected[name] = [int(row.index(max(row)) == target) for row, target in rows]
        answers.correction[name] = plan.kind


@dataclass(frozen=True)
class _Question:
    """A multiple-choice question as it was asked, its right option, whether it was chosen, and its texts."""

    asked: Asked
    target: int | None
    correct: float
    text: str
    options: list[str]

    @property
    def chosen(self) -> int:
        return self.asked.scores.index(max(self.asked.scores))


def _questions(task: Any, samples: Sequence[dict[str, Any]]) -> list[_Question]:
    """The questions of a task in its order; none where it does not choose among options, one of which is right."""
    kept = [s for s in samples if s["filter"] == samples[0]["filter"]]
    metric = next((m for m in METRICS if kept and m in kept[0]), None)
    if metric is None or task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "multiple_input"):
        return []
    return [_question(task, sample, metric) for sample in sorted(kept, key=lambda s: s["doc_id"])]


def _question(task: Any, sample: dict[str, Any], metric: str) -> _Question:
    """A question as it was asked; ``acc_norm`` compares log-likelihoods per character."""
    doc, choices = sample["doc"], [str(choice) for choice in task.doc_to_choice(sample["doc"])]
    logs = [response[0] for response in sample["filtered_resps"]][: len(choices)]  # more: without the question
    lengths = [float(len(choice)) if metric == "acc_norm" else 1.0 for choice in choices]
    scores = [score / length for score, length in zip(logs, lengths, strict=True)]
    options = tuple(continuation for _, continuation in sample["arguments"][: len(choices)])
    asked = Asked(doc, sample["arguments"][0][0], options, scores, lengths)
    text = next((doc[key] for key in ("question", "sentence", "query") if isinstance(doc.get(key), str)), None)
    text = asked.prompt if text is None else text
    return _Question(asked, right_option(task, doc), sample[metric], text.strip(), _in_words(doc, choices))


def _in_words(doc: Mapping[str, Any], choices: list[str]) -> list[str]:
    """What the options say, where they are letters for a list in the document."""
    if all(len(choice.strip()) == 1 for choice in choices):
        for value in doc.values():
            inner = value.get("text") if isinstance(value, dict) else value
            if isinstance(inner, list) and len(inner) == len(choices) and all(isinstance(x, str) for x in inner):
                return [f"{choice.strip()}. {text}" for choice, text in zip(choices, inner, strict=True)]
    return [choice.strip() for choice in choices]


def _answers(found: dict[str, Any], tasks: Mapping[str, Any]) -> Answers:
    answers = Answers()
    for name, values in found["results"].items():
        answers.metrics[name], answers.stderrs[name] = metrics_of(values)
        if name in found["n-samples"]:
            answers.sizes[name] = found["n-samples"][name]["effective"]
    for name, samples in found["samples"].items():
        samples = sorted(samples, key=lambda s: (s["filter"], s["doc_id"]))
        hashes = "\n".join(str(s.get(key)) for s in samples if s["filter"] == samples[0]["filter"] for key in _HASHES)
        answers.hashes[name] = hashlib.sha256(hashes.encode()).hexdigest()
        _add(answers, name, tasks[name], _questions(tasks[name], samples))
    members = found.get("group_subtasks", {})
    for group in members:
        leaves = [leaf for leaf in dict.fromkeys(_leaves(group, members)) if leaf in answers.sizes]
        if leaves and group not in answers.sizes:
            answers.groups[group] = leaves
            answers.sizes[group] = sum(answers.sizes[leaf] for leaf in leaves)
    return answers


def _add(answers: Answers, name: str, task: Any, questions: Sequence[_Question]) -> None:
    """The answers to a task's questions, if lm-eval calls those right in which the right option was chosen."""
    targets = [q.target for q in questions if q.target is not None]
    if not questions or len(targets) < len(questions):
        return
    if any(q.correct != (q.chosen == target) for q, target in zip(questions, targets, strict=True)):
        return
    asked = [q.asked for q in questions]
    answers.correct[name] = [int(q.correct) for q in questions]
    answers.targets[name], answers.chosen[name] = targets, [q.chosen for q in questions]
    answers.chance[name] = sum(1 / len(q.scores) for q in asked) / len(asked)
    if not task.multiple_input:
        answers.blind[name] = best_blind([q.options for q in asked], targets)
    answers.picked[name] = [
        q.options[q.chosen] if task.multiple_input else q.asked.options[q.chosen].strip() for q in questions
    ]
    logs = [[s * n for s, n in zip(q.scores, q.lengths, strict=True)] for q in asked]
    answers.prob[name] = [math.exp(row[t]) for row, t in zip(logs, targets, strict=True)]
    answers.mass[name] = [min(1.0, sum(map(math.exp, row))) for row in logs]
    answers.shares[name] = [_shares(row) for row in logs]
    answers.questions[name], answers.options[name] = [q.text for q in questions], [q.options for q in questions]


def _shares(logs: Sequence[float]) -> list[float]:
    """Probability of each option among the options."""
    parts = [math.exp(value - max(logs)) for value in logs]
    return [part / sum(parts) for part in parts]


def metrics_of(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """lm-eval's metrics of a task or a group, and their standard errors; a filter stands after a comma."""
    metrics: dict[str, float] = {}
    stderrs: dict[str, float] = {}
    for key, value in values.items():
        name, _, kept = key.partition(",")
        if not kept or isinstance(value, str) or value is None:
            continue
        into = stderrs if name.endswith("_stderr") else metrics
        into[name.removesuffix("_stderr") + (f",{kept}" if kept != "none" else "")] = float(value)
    return metrics, stderrs


def _leaves(name: str, members: dict[str, list[str]]) -> list[str]:
    if name not in members:
        return [name]
    return [leaf for child in members[name] for leaf in _leaves(child, members)]


def base_answers(
    checkpoint: Checkpoint, settings: Eval, dtype: torch.dtype, device: str, ask: Ask, anew: bool = False
) -> Answers:
    """The answers of the base model, from the cache when it was asked the same questions before.

    Args:
        ask: asks the checkpoint in a folder.
        anew: the kept answers are to other questions, since the tasks' data have changed.
    """
    made_from = fingerprint(
        checkpoint.identity(),
        asdict(settings),
        str(dtype),
        device.partition(":")[0],
        [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    )

    def make() -> dict[str, Any]:
        checkpoint.fetch()
        return asdict(ask(checkpoint.folder))

    return Answers(**cached("base_answers", made_from, make, anew))


def compare(base: Answers, unlearned: Answers, roles: Mapping[str, Role] | None = None) -> Qa:
    """The ``qa`` part of results.json: each group and task before and after, on the same questions, with its role."""
    table = Qa()
    for name in base.with_accuracy:
        before, after = (answers.pooled(answers.correct, name) for answers in (base, unlearned))
        row = statistics.row(before, after, base.mean(base.chance, name), base.blindly(name))
        row.base, row.unlearned, row.tasks = base.accuracy(name), unlearned.accuracy(name), base.groups.get(name)
        kinds = {base.correction[t] for t in base.tasks_of(name) if t in base.correction}
        row.correction = " and ".join(sorted(kinds)) or None
        row.role = (roles or {}).get(name)
        table[name] = row
    return table


def measured(base: Answers, unlearned: Answers, roles: Mapping[str, Role] | None = None) -> dict[str, MeasuredRow]:
    """What lm-eval measures of the tasks and groups that have no accuracy over right and wrong answers."""
    table: dict[str, MeasuredRow] = {}
    for name in base.metrics:
        if base.metrics[name] and name not in base.with_accuracy:
            before, after = (_measured(answers, name) for answers in (base, unlearned))
            role, tasks = (roles or {}).get(name), base.groups.get(name)
            table[name] = MeasuredRow(base=before, unlearned=after, role=role, tasks=tasks)
    return table


def _measured(answers: Answers, name: str) -> Measured:
    metrics, stderrs = answers.metrics[name], answers.stderrs[name]
    found = Measured(n=answers.sizes[name], metrics=metrics, metrics_stderr=stderrs)
    if (acc := metrics.get("acc")) is not None:
        found.acc, found.stderr = acc, stderrs.get("acc")
    return found


def entry_roles(settings: Eval, roles: Mapping[str, Role]) -> dict[str, Role]:
    """The roles of the tasks and groups that the entries of eval.tasks stand for, from those of the entries."""
    names = catalogue.find(settings.tasks or [], settings.include_path).names
    return {name: role for entry, role in roles.items() for name in names.get(entry, [entry])}
