"""Nothing that comes with a model or a folder is executed, and files are written only where they may be."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import a_run
import fuzz
import pytest
import tiny
import torch

from rmu_exp.__main__ import main
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.support.errors import UserError

ROOT = Path(__file__).parents[2]


class Planted:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.mistral(tmp_path / "model", layers=2)


def use(folder: Path) -> Checkpoint:
    checkpoint = locate(None, str(folder))
    checkpoint.tokenizer()
    checkpoint.skeleton(1)
    checkpoint.open(None, torch.float32, torch.device("cpu"))
    return checkpoint


def test_the_planted_pickle_would_work(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_pickles_beside_the_weights_are_not_loaded(model, tmp_path):
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "vocab.bin", "model.pt"):
        (model / name).write_bytes(pickle.dumps(Planted(tmp_path / "mark")))
    use(model)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_place_of_the_weights_is_refused_in_one_line(model, tmp_path, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Planted(tmp_path / "mark")))
    assert isinstance(fuzz.told(lambda: use(model)), UserError)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["mistral", "its_own"])
def test_code_beside_the_weights_is_not_run(model, tmp_path, kind):
    """A known architecture is loaded by transformers' own code; one that needs its own is refused in one line."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\nclass Own: pass\n"
    (model / "own.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        content["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "own.Own")
        content["auto_map"]["AutoTokenizer"] = ["own.Own", "own.Own"]
        content |= {"model_type": kind} if name == "config.json" else {}
        (model / name).write_text(json.dumps(content))
    answer = fuzz.told(lambda: use(model))
    assert isinstance(answer, Checkpoint if kind == "mistral" else UserError)
    assert kind == "mistral" or "model.trust_remote_code=true" in str(answer)
    assert not (tmp_path / "mark").exists()


def test_yaml_makes_no_objects(tiny_run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'mark'}']\n")
    (tmp_path / "results.json").write_bytes((tiny_run / "results.json").read_bytes())
    assert main(["verify", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "mark").exists()


WATCH = """
import os, sys
def watch(event, args, said=os.open(os.environ["WRITTEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
    written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (written or event in ("os.mkdir", "os.rename", "os.symlink", "os.link")) and not isinstance(args[0], int):
        path = args[0] if event in ("open", "os.mkdir") else args[1]
        os.write(said, os.fsencode(os.path.abspath(os.fsdecode(path))) + b"\\n")
sys.addaudithook(watch)
"""


def test_files_are_written_under_the_runs_folder_and_the_caches_only(tmp_path):
    """Every file that is opened for writing, and every folder made, by a run with W&B, attacks and an export."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    for name in ("cwd", "tmp", "home"):
        (tmp_path / name).mkdir()
    words = [word for word in a_run.words(tmp_path) if word != "tracking=off"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_", "XDG_", "TORCHINDUCTOR_"))}
    env |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "RMU_EXP_CACHE": str(tmp_path / "cache")}
    env |= {"WRITTEN": str(tmp_path / "written"), "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT / 'src'}"}
    env |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, str(ROOT / "train.py"), *words, "export=true", "attacks=[norms]"]
    done = subprocess.run([*line, f"output={tmp_path / 'run'}"], env=env, cwd=tmp_path / "cwd", capture_output=True)
    assert done.returncode == 0, done.stderr
    written = {Path(p) for p in (tmp_path / "written").read_text().splitlines()}
    assert tmp_path / "run" / "results.json" in written
    allowed = [
        tmp_path / name for name in ("run", "cache", "home/.cache", "home/.config", "home/.local/share/wandb", "tmp")
    ]
    outside = [
        p for p in written if not any(p == a or a in p.parents for a in allowed) and Path("/dev") not in p.parents
    ]
    on_the_way = {parent for a in allowed for parent in a.parents}
    assert [p for p in outside if p not in on_the_way and not p.name.startswith(".rmu_exp-")] == []
    assert list((tmp_path / "cwd").iterdir()) == []
    assert list((tmp_path / "home").glob("[!.]*")) == []
