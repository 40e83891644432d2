"""What a run asks: refused before training where it cannot be, in part where so wanted, found again later."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import a_run
import lm_eval
import pytest
import tiny
import transformers
import yaml
from lm_eval.tasks import TaskManager

from rmu_exp.__main__ import main
from rmu_exp.cli import compose
from rmu_exp.evaluation import catalogue, harness
from rmu_exp.pipeline import run
from rmu_exp.record import rundir
from rmu_exp.settings import Eval
from rmu_exp.support.errors import UserError
from rmu_exp.worlds import checkpoint

LORE = checkpoint("lore")
TASKS = Path(harness.__file__).parents[1] / "worlds/lore/tasks"


def refusal(words: list[str]) -> str:
    """What a command line is refused with before anything is written."""
    (composed,) = compose.composed([*words, "output=out"], a_run.CONF)
    with pytest.raises(UserError) as told:
        run.prepare(composed, Path("out"))
    assert not Path("out").exists()
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


def test_a_model_without_a_head_trains_and_is_asked_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = a_run.words(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    for asked in ([], ["eval.tasks=[]", "eval.perplexity=retain.txt"], ["eval.tasks=[]", "eval.samples=2"]):
        assert "a language-model head, which" in refusal([*words, *asked])
    trained = [word for word in words if not word.startswith("eval.tasks=")] + ["eval=none"]
    a_run.carry_out(trained, tmp_path / "done")  # RMU needs no head
    assert (tmp_path / "done/delta.safetensors").is_file()


@pytest.mark.parametrize(
    ("template", "words", "named"),
    [
        (None, ["eval.chat_template=true"], "eval.chat_template: the model's tokenizer has no chat template"),
        ("{{ raise_exception('no system role') }}", ["eval.chat_template=true", "eval.system_prompt=Hush"],
         "eval.system_prompt: the tokenizer's chat template takes no system message (no system role)"),
    ],
)  # fmt: skip
def test_a_chat_template_that_is_not_there(
    template: str | None, words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = a_run.words(tmp_path)
    if template:
        (tmp_path / "model/chat_template.jinja").write_text(template)
    assert named in refusal([*given, *words])


def test_an_option_that_the_model_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.csv").write_text(f"question,A,B,answer\nq,x,{'river ' * 1100},A\n")
    said = refusal([*a_run.words(tmp_path), "eval.tasks=[long.csv]", "data.questions.forget=[]"])
    assert said.startswith("eval.tasks: long: the option river river")
    assert said.endswith("has 1100 tokens, the model takes 1024")


def test_a_part_of_the_questions_is_what_lm_eval_asks(tmp_path: Path) -> None:
    tiny.mistral(tmp_path, layers=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(LORE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(LORE)
    names = ["lore_forget_hexes", "lore_general"]

    def stock(**part: object) -> dict[str, dict[str, float]]:
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        args = {"pretrained": str(LORE), "dtype": "float32"}
        found = lm_eval.simple_evaluate("hf", args, names, device="cpu", task_manager=manager, **part)
        return {name: harness.metrics_of(values)[0] for name, values in found["results"].items()}

    part = Eval(tasks=names, limit=0.03, corrected=False)
    assert harness.ask(model, tokenizer, part).metrics == stock(limit=0.03)
    drawn = Eval(tasks=names, limit=5, draw=3, corrected=False)
    which = {name: list(catalogue.places(task, drawn)) for name, task in catalogue.loaded(drawn)["tasks"].items()}
    found = harness.ask(model, tokenizer, drawn)
    assert found.metrics == stock(samples=which)
    assert set(map(len, which.values())) == {found.sizes[name] for name in which} == {5}
    there = len(catalogue.loaded(drawn)["tasks"]["lore_forget_hexes"].eval_docs)
    assert which["lore_forget_hexes"] == sorted(random.Random("3/lore_forget_hexes").sample(range(there), 5))
    few = harness.ask(model, tokenizer, drawn, first=2)
    assert few.correct == found.first(2).correct


def test_a_folder_of_an_earlier_version_is_read(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before roles: data.tasks, forget_tasks, adjacent_tasks, none of the newer settings, rows without roles."""
    shutil.copytree(tiny_run, tmp_path / "old", ignore=shutil.ignore_patterns("model"))
    file = tmp_path / "old/config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["data"]["questions"]
    lists = {"tasks": ["lore_forget", "lore_general"], "forget_tasks": ["lore_forget"], "adjacent_tasks": []}
    values["data"] |= lists
    newer = ("include_path", "num_fewshot", "chat_template", "system_prompt", "bootstrap", "draw", "ripple", "samples")
    values["eval"] = {key: value for key, value in values["eval"].items() if key not in newer}
    file.write_text(yaml.safe_dump(values))
    results = json.loads((tmp_path / "old/results.json").read_text())
    for row in results["qa"].values():
        row.pop("role", None)
    (tmp_path / "old/results.json").write_text(json.dumps(results))
    questions = rundir.read(tmp_path / "old").settings.data.questions
    assert (questions.forget, questions.adjacent, questions.general) == (["lore_forget"], [], ["lore_general"])
    assert main(["table", str(tmp_path / "old")]) == 0
    assert "| method | forget | general |" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "old"), str(tiny_run)]) == 0
