"""The real command line: what it refuses, what it explains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import program
import pytest
from families import make_checkpoint, save_tokenizer
from program import ROOT

from rmu_exp.cli import compose
from rmu_exp.pipeline.run import prepare
from rmu_exp.support.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("mistral", tmp_path_factory.mktemp("base"), shard="12KB")


def train(*words: str, cwd: Path, **env: object) -> subprocess.CompletedProcess[str]:
    return program.run("train.py", *words, cwd=cwd, RMU_EXP_CACHE=cwd / ".cache", **env)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stear=6.5"], "stear: no such key, did you mean steer?"),
        (["model=lore", "data=lore", "layer=99"], "layer: got 99, allowed is 0 to "),
        (["-m", "layer=3,5,99x"], "layer: got '99x', allowed is a whole number"),
        (["model=lore", "data.forget=[nowhere.jsonl,lore:wards]"], "nowhere.jsonl: no such file"),
        (["hydra.run.dir=file/x"], "output: cannot write to file/x"),
        (["output=file/run"], "output: cannot write to file/run"),
        (["--config-path", "nowhere"], "nowhere"),
        (["--config-dir", "nowhere"], "nowhere"),
        (["--run", "-m"], "Only one of"),
        (["seed=a=[b"], "seed"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line_and_leaves_nothing(words, named, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(*words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert named in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == ["file"]


LOCAL = ["model=local", "model.path=base", "data=local", "data.forget=[a.txt]", "data.retain=[a.txt]"]
LOCAL += ["layer=2", "steer=1", "alpha=1", "eval=none"]


def _cut_off(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-7])


def _no_eos(folder: Path) -> None:
    save_tokenizer(folder, unk_token="<unk>", pad_token="w5")


@pytest.mark.parametrize(
    ("spoil", "words", "named"),
    [
        (None, ["model.path=nowhere"], "model.path: nowhere is not a folder"),
        (None, ["model.device=warp"], "model.device: got 'warp', allowed is auto"),
        (None, ["layer=4"], "layer: got 4, allowed is 0 to 3"),
        (None, ["layers.parameters=[mlp.nope]"], "layers.parameters: .*mlp.nope.*mlp.down_proj.weight"),
        (None, ["layers.param_ids=[77]"], "layers.param_ids: .*77"),
        (None, ["eval.tasks=[no_such_task]"], "eval.tasks: .*no_such_task"),
        (None, ["eval.perplexity=nowhere.txt"], "nowhere.txt: no such file"),
        (None, ["data.retain=[gone.jsonl]"], "gone.jsonl: no such file"),
        (None, ["data.forget=[lore:dragons]"], "lore:dragons.*hexes, wards"),
        (None, ["train.batch_size=9"], "train.batch_size: got 9.*a.txt has only 8 usable texts"),
        (None, ["train.batch_size=9", "method.faithful=true"], "train.batch_size: got 9.*a.txt"),
        (_no_eos, ["method.faithful=true"], "method.faithful: .*eos token"),
        (_cut_off, [], "damaged or cut off.*download it again"),
    ],
)
def test_a_model_or_corpus_that_cannot_be_used(spoil, words, named, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / ".cache"))
    (tmp_path / "a.txt").write_text("w1 w2\n\n" * 8)
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    if spoil:
        spoil(folder)
    (run,) = compose.composed([*LOCAL, "output=out", *words], ROOT / "conf")
    with pytest.raises(UserError, match=named):
        prepare(run, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".cache") == ["a.txt", "base"]


QUICK = ["model=lore", "data=lore", "eval=none", "train.max_batches=2"]


def test_no_tracking_and_a_folder_given_to_hydra_that_is_resumed(tmp_path):
    words = [*QUICK, "~tracking", "hydra.run.dir=there/a=b"]
    for _ in range(2):
        done = train(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "step" not in done.stderr, "trained again"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "there"]
    assert not (tmp_path / "there/a=b/wandb").exists()


def test_an_experiment_of_ones_own_that_implies_a_sweep(tmp_path):
    """With keys of a group that is swept; later with an attack, which is all that is done then."""
    (tmp_path / "mine/experiment").mkdir(parents=True)
    mine = "# @package _global_\nseed: 5\nhydra: {mode: MULTIRUN}\n"
    (tmp_path / "mine/experiment/own.yaml").write_text(mine)
    words = ["--config-dir", "mine", "experiment=own", *QUICK, "tracking=off", "method=npo,simnpo", "method.beta=0.2"]
    done = train(*words, "output=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = [(tmp_path / f"s/method={m}/delta.safetensors").stat().st_mtime_ns for m in ("npo", "simnpo")]
    done = train(*words, "output=s", "attacks=[norms]", "share.when=never", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for method, before in zip(("npo", "simnpo"), written, strict=True):
        folder = tmp_path / f"s/method={method}"
        assert '"norms"' in (folder / "results.json").read_text()
        assert (folder / "delta.safetensors").stat().st_mtime_ns == before
    assert "seed: 5" in (folder / "config.yaml").read_text()


def test_help_names_every_group_choice_and_key_and_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'wandb', 'datasets', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for file in (ROOT / "conf").rglob("*.yaml"):
        if file.parent.name not in ("conf", "preset", "method_model", "attacker"):  # of judge.py, or follow from others
            assert f" {file.stem}" in done.stdout
    for key in ("layer", "steer", "alpha", "seed", "export", "output", ".lr", ".param_ids"):
        assert f" {key}=" in done.stdout


def test_cfg_job_shows_the_composed_run_even_an_incomplete_one(tmp_path):
    done = train("model=hf", "steer=2", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("layer: ???", "steer: 2", "faithful: false"):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_shell_completion(tmp_path):
    done = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE="train.py tracking=", COMP_POINT="18")
    assert set(done.stdout.split()) == {"tracking=off", "tracking=trackio", "tracking=wandb"}


def test_a_hub_that_cannot_be_reached_is_status_1_and_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2\n\n" * 8)
    words = ["model=hf", "model.name=org/model", *LOCAL[2:], "tracking=off", "output=out/deep"]
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}  # read by imports
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "org/model: the hub cannot be reached" in line
    assert not (tmp_path / "out").exists()
