"""A run writes samples, measures damage and sets accuracy lost against distance; a second start does nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import a_run
import pytest
import torch

from rmu_exp.__main__ import main
from rmu_exp.evaluation import generate
from rmu_exp.evaluation.perplexity import perplexity
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline import observe
from rmu_exp.record import results as results_json
from rmu_exp.support.errors import UserError


@pytest.fixture
def folder(tiny_seen: Path) -> Path:
    """The folder of models, texts and a finished run with everything on."""
    return tiny_seen.parent


def test_samples_are_what_the_models_write(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "run/samples.jsonl").read_text().splitlines()]
    assert [line["role"] for line in lines] == ["forget"] * 3 + ["general"] * 3
    checkpoint = locate(None, str(folder / "model"))
    model, tokenizer = checkpoint.open(None, torch.float32, torch.device("cpu")), checkpoint.tokenizer()
    prompts = [tokenizer(line["prompt"])["input_ids"] for line in lines]
    how = {"tokens": 5, "context": checkpoint.context}
    base = [generate.write(model, tokenizer, [p], **how)[0] for p in prompts]
    sampled = [generate.write(model, tokenizer, [p], seeds=[0], **how)[0].text for p in prompts]
    with Delta.load(folder / "run/delta.safetensors").applied(model):
        after = [generate.write(model, tokenizer, [p], **how)[0] for p in prompts]
    assert [(line["base"], line["unlearned"]) for line in lines] == [
        (b.text, a.text) for b, a in zip(base, after, strict=True)
    ]
    assert [line.get("base_sampled") for line in lines] == [*sampled[:2], None, *sampled[3:5], None]
    rows = results_json.load(folder / "run/results.json").samples
    assert rows["forget"].unlearned.n == 3
    likely = generate.nll(model, tokenizer, prompts[:3], [a.ids for a in after[:3]])
    assert rows["forget"].unlearned.nll == pytest.approx(sum(likely) / 3, abs=1e-5)
    assert rows["general"].base.nll == pytest.approx(sum(w.nll for w in base[3:]) / 3, abs=1e-5)


def test_damage_is_of_the_first_texts_of_each_kind(folder: Path) -> None:
    found = results_json.load(folder / "run/results.json").damage
    assert found is not None
    assert found.texts == {"neutral": 6, "retain": 7, "forget": 7}
    assert found.kl["neutral"].tokens == 3 * 2 + 3 * 6
    checkpoint = locate(None, str(folder / "model"))
    model = checkpoint.open(None, torch.float32, torch.device("cpu"))
    texts = (folder / "neutral.txt").read_text().splitlines()
    obvious = perplexity(model, checkpoint.tokenizer(), texts, max_length=100, max_batch_tokens=50)
    neutral = found.perplexity[str(folder / "neutral.txt")]
    assert neutral.base == pytest.approx(obvious.perplexity, rel=1e-5)
    assert set(found.perplexity) == {str(folder / f"{name}.txt") for name in ("neutral", "retain", "forget")}
    assert all(math.isfinite(kl.mean) and kl.mean >= 0 for kl in found.kl.values())


def test_the_report_shows_them(folder: Path) -> None:
    report = (folder / "run/report.md").read_text()
    for title in ("## What they write", "## Damage", "## Where accuracy was lost", "plots/ripple.png"):
        assert title in report
    assert "nats per token" in report.splitlines()[2], "the verdict says it"
    assert (folder / "run/plots/ripple.png").is_file()
    page = (folder / "run/report.html").read_text()
    for title in ("What they write", "Damage", "Where accuracy was lost", "All prompts, with what both models wrote"):
        assert title in page
    assert page.count('src="data:image/png;base64,') == len(list((folder / "run/plots").iterdir()))


def test_a_second_start_does_nothing_and_more_on_the_same_base_writes_the_base_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMU_EXP_CACHE", str(folder / "cache"))
    before = (folder / "run/samples.jsonl").stat().st_mtime_ns
    calls = []
    write = generate.write
    monkeypatch.setattr(observe.generate, "write", lambda *a, **k: calls.append(1) or write(*a, **k))
    words = [*a_run.words(folder), *a_run.seen(folder)]
    a_run.carry_out(words, folder / "run")
    assert (folder / "run/samples.jsonl").stat().st_mtime_ns == before
    assert not calls
    a_run.carry_out([*words, "steer=3", "eval.damage=0"], tmp_path / "other")
    assert len(calls) == 1, "the base's answers come from the cache"
    assert results_json.load(tmp_path / "other/results.json").damage is None


def test_off_without_neutral_text_and_on_request(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results_json.load(tiny_run / "results.json")
    assert (found.damage, found.samples) == (None, {})
    assert found.ripple is not None, "what lore knows of distance costs nothing"
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    long = json.dumps({"prompt": "the old bridge " * 1667, "role": "rivers"})  # 5,000 tokens, of which the end is read
    (tmp_path / "mine.jsonl").write_text(f'{{"prompt": "the old bridge", "role": "rivers"}}\n{long}\n')
    words = [*a_run.words(tmp_path), "eval.tasks=[]", f"eval.samples={tmp_path / 'mine.jsonl'}", "eval.tokens=3"]
    a_run.carry_out(words, tmp_path / "run")
    rates = results_json.load(tmp_path / "run/results.json").samples
    assert list(rates) == ["rivers"]
    assert rates["rivers"].base.match is None
    assert rates["rivers"].unlearned.n == 2


def test_distance_by_hidden_states(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    a_run.carry_out([*a_run.words(folder), "eval.ripple=texts"], tmp_path / "run")
    found = results_json.load(tmp_path / "run/results.json").ripple
    assert found is not None
    assert found.by == "hidden states"
    assert sum(level.n for level in found.levels) == 6 * 6
    far = [level.distance for level in found.levels if level.distance is not None]
    assert far == sorted(far)
    assert len(far) == 5
    assert "largest cosine" in (tmp_path / "run/report.md").read_text()


def test_own_questions_have_distances_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of them by construction: the forget texts themselves are nearest, and roles do not matter."""
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    told = (folder / "forget.txt").read_text().splitlines()[:8]
    for name, asked in (("near", told), ("far", [" ".join(reversed(line.split())) for line in told])):
        rows = [f'"{line.rsplit(" ", 1)[0]}",{line.rsplit(" ", 1)[1]},{k},A' for k, line in enumerate(asked)]
        (tmp_path / f"{name}.csv").write_text("question,A,B,answer\n" + "\n".join(rows) + "\n")
    words = [*a_run.words(folder), "eval.tasks=null", f"data.questions.forget=[{tmp_path / 'near.csv'}]"]
    words += [f"data.questions.general=[{tmp_path / 'far.csv'}]", f"data.neutral={folder / 'neutral.txt'}"]
    a_run.carry_out([*words, "eval.samples=0", "eval.limit=null"], tmp_path / "run")
    found = results_json.load(tmp_path / "run/results.json").ripple
    assert found is not None
    assert found.by == "hidden states"
    assert [level.n for level in found.levels] == [3, 3, 4, 3, 3]
    answers = [json.loads(line) for line in (tmp_path / "run/answers.jsonl").read_text().splitlines()]
    lost = sum(a["base"] == a["target"] for a in answers) - sum(a["unlearned"] == a["target"] for a in answers)
    assert sum(level.lost.mean * level.n for level in found.levels) == pytest.approx(lost)
    assert (tmp_path / "run/plots/ripple.png").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eval.samples=empty.txt"], r"eval\.samples: .*no such file"),
        (["eval.samples=-1"], r"eval\.samples: got -1, allowed is 0 or more, a file of prompts, or null"),
        (["eval.samples=0.5"], r"eval\.samples: got 0\.5"),
        (["eval.samples=5", "eval.tasks=[]", "data.questions.forget=[]"], r"eval\.samples: there are no questions"),
        (["eval.perplexity=[3]"], r"eval\.perplexity: got \[3\], allowed is a source, or a list of them"),
        (["eval.damage=-1"], r"eval\.damage: got -1, allowed is 0 or more"),
        (["data.neutral=none.txt", "eval.samples=0"], r"none\.txt: no such file"),
        (["eval.ripple=near"], r"eval\.ripple: got 'near', allowed is auto, texts, off"),
        (["eval.tokens=0"], r"eval\.tokens: got 0, allowed is 1 or more"),
        (["eval.samples=3", "eval.tokens=100000"], r"eval\.tokens: got 100000, but the model reads no more than"),
    ],
)
def test_refused_before_anything_is_written(words: list[str], line: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        a_run.carry_out([*a_run.words(folder), *words], tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_chat_answers_by_both_models(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.loads((folder / "run/samples.jsonl").read_text().splitlines()[0])
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["chat", str(folder / "run"), line["prompt"], "--tokens", "5", "--plain"]) == 0
    said = capsys.readouterr().out
    assert "base" in said
    assert "unlearned" in said
    assert all(text in said for text in (line["base"].strip(), line["unlearned"].strip()))
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("two herons\n\nnever read\n"))
    assert main(["chat", str(folder / "run"), "--tokens", "2", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "> two herons" in said
    assert "never read" not in said
    for words, why in (([str(folder)], "no config.yaml"), ([str(folder / "run"), "--tokens", "0"], "--tokens: got 0")):
        assert main(["chat", *words]) == 2
        assert why in capsys.readouterr().err
