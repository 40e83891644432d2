"""Planted tokens, keys and passwords: none of them in anything that a run writes or prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import a_run
import program
import pytest
import wandb_file
from program import ROOT

from rmu_exp.cli import compose
from rmu_exp.support import redaction
from rmu_exp.support.errors import RunError, UserError

HUB, OTHER, KEY, PASSWORD = (
    "hf_" + "aB3dE5" * 6,
    "hf_" + "zY7xW9" * 6,
    "0123456789abcdef" * 2 + "deadbeef",
    "pa55-word-planted",
)
PLANTED = (HUB, OTHER, KEY, PASSWORD)
ENVIRONMENT = {
    "HF_TOKEN": HUB,
    "HUGGING_FACE_HUB_TOKEN": OTHER,
    "WANDB_API_KEY": KEY,
    "HTTPS_PROXY": f"http://someone:{PASSWORD}@127.0.0.1:9",
    "WANDB_MODE": "offline",
    "OMP_NUM_THREADS": "1",
}


def train(folder: Path, name: object, *given: str) -> subprocess.CompletedProcess[str]:
    words = [w for w in a_run.words(folder) if not w.startswith("tracking")]
    places = {"RMU_EXP_CACHE": folder / "cache", "HOME": folder / "home"}
    return program.run(name, *words, *given, "output=run", cwd=folder, **ENVIRONMENT, **places)


def found_in(folder: Path, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Where one of the planted stands, in files (W&B's records unpacked, too) and names of files, and on the screen."""
    texts = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    for file in folder.rglob("*"):
        texts[f"name of {file}"] = str(file.relative_to(folder)).encode()
        if file.is_file():
            texts[str(file)] = file.read_bytes()
        if file.suffix == ".wandb":
            texts[f"records of {file}"] = "".join(map(str, wandb_file.records(file))).encode()
    return [name for name, text in texts.items() if any(secret.encode() in text for secret in PLANTED)]


def test_a_run_with_wandb_and_export_writes_none(tmp_path):
    done = train(tmp_path, "train.py", "export=true", "attacks=[norms]")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("*.wandb"))
    assert found_in(tmp_path, done) == []


FAILING = f"""
from rmu_exp.evaluation import harness

def fail(*_, **__):
    raise ValueError("cannot reach https://someone:{PASSWORD}@host with {KEY}, token={HUB}")

harness.ask = fail

"""


def test_a_run_that_fails_with_them_in_its_error_tells_none(tmp_path):
    failing = tmp_path / "failing.py"
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    failing.write_text((ROOT / "train.py").read_text().replace("if __name__", f"{FAILING}if __name__"))
    done = train(tmp_path, failing, "tracking=off")
    failing.unlink()
    assert done.returncode == 1
    assert "cannot reach https://***@host with ***, token=***" in done.stderr
    assert b"Traceback" in (tmp_path / "run" / "run.log").read_bytes()
    assert found_in(tmp_path, done) == []


@pytest.mark.parametrize(
    "given",
    [
        f"+eval.backend_args.token={HUB}",
        f"tracking.tags=[{KEY}]",
        f"'data.forget=[https://someone:{PASSWORD}@host/a.jsonl]'",
        "model.revision=${oc.env:HF_TOKEN}",
        f"model.name={OTHER}",
    ],
)
def test_a_setting_that_holds_one_is_refused_without_showing_it(given, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as told:
        compose.composed([given.strip("'"), "data.topics=null", "output=nowhere"], a_run.CONF)
    assert "holds a token or a password" in str(told.value)
    assert not any(secret in str(told.value) for secret in PLANTED)


def test_what_is_taken_out_and_what_is_left(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "correct-horse-battery")
    assert redaction.redact("x correct-horse-battery y") == "x *** y"
    assert redaction.redact("https://u:p@h/a and http://h/b") == "https://***@h/a and http://h/b"
    assert redaction.redact(f"Bearer abcdefgh12 {HUB}") == "*** ***"
    assert redaction.redact("api_key=0a1b2c3d4e5f60718293") == "api_key=***"
    for harmless in (
        "pad_token: </s>",
        "tokenizer=PreTrainedTokenizerFast",
        "git commit " + "0af3" * 10,
        "a@b.c",
        "max_tokens: 4096",
    ):
        assert redaction.redact(harmless) == harmless
    assert "correct-horse" not in str(RunError("failed with correct-horse-battery"))
