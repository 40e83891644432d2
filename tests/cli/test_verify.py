"""``python -m rmu_exp verify`` on a real run, and on the same run with one thing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import a_run
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from rmu_exp.__main__ import main
from rmu_exp.cli import compose
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.run import execute
from rmu_exp.settings import digest_of


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_agrees_with_itself_and_is_not_touched(run, capsys):
    before = contents(run)
    assert main(["verify", str(run), "--answers", "--training"]) == 0
    out = capsys.readouterr().out
    assert contents(run) == before
    told = [line.split("  ")[0].strip() for line in out.splitlines()[:-1]]
    assert set(told) <= {"agrees", "note"}
    for what in (
        "settings",
        "weights of the base",
        "Delta: sha256:",
        "questions lore_forget:",
        "answers lore_",
        "model/",
    ):
        assert f"agrees     {what}" in out, what
    assert "agrees     training again: the same Delta, byte for byte" in out


def results(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "results.json").read_text())
        change(content)
        (folder / "results.json").write_text(json.dumps(content))

    return apply


def config(folder: Path) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["train"]["lr"] *= 2
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def answer(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    chosen, target = lines[0]["unlearned"], lines[0]["target"]
    lines[0]["unlearned"] = 1 - chosen if target == chosen else target
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))


def tensor(value: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        delta = Delta.load(folder / "delta.safetensors")
        next(iter(delta.tensors.values()))[0, 0] += value
        delta.save(folder / "delta.safetensors")

    return apply


def exported(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["model.layers.3.mlp.down_proj.weight"] += 1
    save_file(tensors, file, {"format": "pt"})


def fewer_steps(folder: Path) -> None:
    file = folder / "metrics.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))


CHANGES = {
    "a setting": (config, "settings: recorded"),
    "an accuracy": (results(lambda r: r["qa"]["lore_forget"]["unlearned"].update(acc=0.123)), "questions lore_forget:"),
    "a test": (results(lambda r: r["qa"]["lore_general"]["mcnemar"].update(p=0.5)), "questions lore_general: mcnemar"),
    "an answer": (answer, "questions lore_forget_hexes: unlearned.acc"),
    "a weight": (tensor(1), "Delta: recorded"),
    "an exported weight": (exported, "model/: model.layers.3.mlp.down_proj.weight is neither"),
    "a number that is none": (tensor(torch.inf), "numbers of the Delta: not finite"),
    "a step left out": (fewer_steps, "steps in metrics.jsonl: not 1 to 4"),
    "a Delta cut off": (lambda f: (f / "delta.safetensors").write_bytes(b"short"), "Delta: "),
    "a settings' copy": (results(lambda r: r["provenance"]["config"].update(seed=7)), "settings in results.json"),
    "another base": (results(lambda r: r["provenance"].update(model_digest="sha256:0")), "weights of the base: recor"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_named(run, capsys, change):
    apply, named = CHANGES[change]
    apply(run)
    assert main(["verify", str(run)]) == 1
    out, err = capsys.readouterr()
    assert any(line.startswith(f"differs    {named}") for line in out.splitlines()), out
    assert err == ""


def test_texts_are_read_again_where_they_are(run, tiny_run, capsys):
    source = tiny_run.parent / "forget.txt"
    kept = source.read_text()
    try:
        source.write_text(kept + "\none more text")
        assert main(["verify", str(run)]) == 1
        assert f"differs    texts {source}: recorded" in capsys.readouterr().out
        source.unlink()
        assert main(["verify", str(run)]) == 0
        assert f"unchecked  texts {source}: " in capsys.readouterr().out
    finally:
        source.write_text(kept)


def test_answers_put_again_differ_from_made_up_ones(run, capsys):
    answer(run)
    main(["verify", str(run), "--answers"])
    assert "differs    answers lore_forget_hexes: 0 others by base, 1 by unlearned, of 6" in capsys.readouterr().out


def test_another_training_is_reported_with_its_distance(run, capsys):
    tensor(1)(run)
    main(["verify", str(run), "--training"])
    out = capsys.readouterr().out
    assert "differs    training again: another Delta (relative L2 distance " in out
    assert "versions and hardware are the same" in out


def test_a_run_of_an_older_version_is_checked_as_far_as_it_can_be(run, capsys):
    """Schema 1: no kind in config.yaml, settings and keys that are gone."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"]["never"] = values["model"].pop("oracle")
    values["share"]["gone"] = 1
    values["digest"] = digest_of({k: v for k, v in values.items() if k not in ("kind", "digest", "command")})
    values.pop("kind")
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    content = json.loads((run / "results.json").read_text())
    content["schema"], content["provenance"]["config_hash"] = 1, values["digest"]
    content["provenance"].pop("config")
    content["run"].pop("kind")
    for entry in content["attacks"].values():
        entry["of"] = entry.pop("fingerprint")
    (run / "results.json").write_text(json.dumps(content))
    assert main(["verify", str(run), "--answers"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "another version" in line]
    assert line.startswith("note       settings as this version reads them: they are of another version (")
    for what in ("weights of the base", "texts", "Delta", "questions lore_forget:", "model/", "answers lore_forget"):
        assert f"agrees     {what}" in out, what
    for command in (["compare", str(run), str(run)], ["table", str(run.parent)], ["sweep", str(run.parent)]):
        assert main(command) == 0, command
    assert main(["export", str(run), str(run.parent / "exported")]) == 0


@pytest.mark.parametrize("missing", ["config.yaml", "results.json"])
def test_not_a_run_is_one_line(run, capsys, missing):
    (run / missing).unlink()
    assert main(["verify", str(run)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert missing in err


def test_a_judgement_agrees_with_itself_too(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tiny_run.parent / "cache"))
    words = [f"unlearned={tiny_run}", "eval.tasks=[lore_forget]", "eval.limit=6", "attacks=[norms]", "tracking=off"]
    words += ["model.oracle=null", "model.threads=1"]
    (judge,) = compose.composed([*words, f"output={tmp_path / 'judged'}"], a_run.CONF, name="judge")
    execute(judge, tmp_path / "judged")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "judged"), "--answers", "--training"]) == 0
    out = capsys.readouterr().out
    assert "agrees     Delta: sha256:" in out
    assert f"agrees     texts {tiny_run.parent / 'forget.txt'}" in out
    assert "agrees     answers lore_forget_hexes: 6 questions" in out
    assert "unchecked  training again: a judgement trains nothing" in out


def test_the_digest_of_a_delta_does_not_know_the_order_of_its_file(tmp_path):
    a, b = torch.ones(2, 3), torch.zeros(4)
    assert Delta({"a": a, "b": b}).digest() == Delta({"b": b, "a": a}).digest()
    assert Delta({"a": a, "b": b}).digest() != Delta({"a": a, "b": b.double()}).digest()
    assert Delta({"a": a}).digest() != Delta({"a": a.T}).digest()
