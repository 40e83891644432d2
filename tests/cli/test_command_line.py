"""The real command line: what it refuses, what it explains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        env=os.environ | {"RMU_EXP_CACHE": str(cwd / ".cache")} | env,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["layer=99"], ["layer", "99", "0 to 11"]),
        (["layer=-1"], ["layer", "-1", "0 or more"]),
        (["layer=x"], ["layer", "'x'", "whole number"]),
        (["steer=abc"], ["steer", "'abc'", "number"]),
        (["steer=-2"], ["steer", "-2", "number"]),
        (["stear=6.5"], ["stear", "did you mean steer"]),
        (["model=nope"], ["model", "'nope'", "lore"]),
        (["alpha=[1,2,3]"], ["alpha", "3 values", "hexes, wards"]),
        (["seed=x"], ["seed", "'x'", "whole number"]),
        (["+foo=1"], ["foo", "no such key"]),
        (["layers.parameters=[[]]"], ["layers.parameters", "got [[]]", "[a,b]"]),
        (["data.topics=[x,x]"], ["data.topics", "x is there twice"]),
        (["seed=99999999999999999999"], ["seed", "0 to 4294967295"]),
        (["attacks=[probe]", "attacks.probe.folds=1"], ["attacks.probe.folds", "2 or more"]),
        (["attacks=[ablation]", "attacks.ablation.layers=top"], ["attacks.ablation.layers: allowed is a list"]),
        (["train=${layer}"], ["train", "got 7", "a group of keys"]),
        (["data.topics=${layer}"], ["data.topics", "got 7", "[a,b]"]),
        (["layer=3,5"], ["layer", "-m"]),
        (["-m", "layer=3,5,99x"], ["layer", "'99x'"]),
        (["train.lr=0"], ["train.lr", "> 0"]),
        (["eval.limit=0"], ["eval.limit", "1 or more"]),
        (["eval.tasks=[no_such_task]"], ["eval.tasks", "no_such_task"]),
        (["data=local"], ["data.forget"]),
        (["data.forget=[lore:dragons]"], ["data.topics"]),
        (["model=local", "layer=1", "steer=1", "alpha=1"], ["model.path"]),
        (["model=local", "model.path=nowhere", "layer=1", "steer=1", "alpha=1"], ["nowhere"]),
        (["layers.parameters=[mlp.nope]"], ["layers.parameters", "mlp.nope", "mlp.down_proj.weight"]),
        (["layers.param_ids=[77]"], ["layers.param_ids", "77"]),
        (["train.schedule=step"], ["train.schedule", "'step'", "constant, linear"]),
        (["method.faithful=true"], ["train.schedule", "constant"]),
        (["data.forget=[lore:dragons,lore:wards]"], ["lore:dragons", "hexes, wards"]),
        (["data.forget=[nowhere.jsonl,lore:wards]"], ["nowhere.jsonl"]),
        (["eval.perplexity=nowhere.txt"], ["nowhere.txt"]),
        (["eval.backend=vllm"], ["eval.backend", "export=true"]),
        (["steer=["], ["command line"]),
        (["model.device=warp"], ["model.device", "warp"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_wrong_input_is_one_line_and_leaves_nothing(words, named, tmp_path):
    done = train(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for word in named:
        assert word in done.stderr
    assert done.stdout == ""
    assert [p for p in tmp_path.iterdir() if p.name != ".cache"] == []


QUICK = ["eval=none", "train.max_batches=2"]


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


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["hydra.run.dir=file/x"], "output: cannot write to file/x"),
        (["output=file/run"], "output: cannot write to file/run"),
        (["--config-path", "nowhere"], "nowhere"),
        (["--config-dir", "nowhere"], "nowhere"),
        (["--run", "-m"], "Only one of"),
        (["seed=a=[b"], "seed"),
    ],
)
def test_what_hydra_refuses_is_one_line(words, named, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(*words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert named in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == ["file"]


def test_cfg_job_of_an_incomplete_run(tmp_path):
    done = train("model=hf", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer: ???" in done.stdout


def test_help_names_every_group_choice_and_key(tmp_path):
    done = train("--help", cwd=tmp_path)
    assert done.returncode == 0
    for file in (ROOT / "conf").rglob("*.yaml"):
        if file.parent.name not in ("conf", "preset", "method_model"):  # the last two follow from the others
            assert f" {file.stem}" in done.stdout
    for key in ("layer", "steer", "alpha", "seed", "export", "output", ".lr", ".param_ids"):
        assert f" {key}=" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert len(done.stdout.splitlines()) <= 100, "two screens"


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'wandb', 'datasets', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_cfg_job_shows_the_composed_run(tmp_path):
    done = train("layer=5", "steer=2", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0
    assert "layer: 5" in done.stdout
    assert "steer: 2" in done.stdout
    assert "faithful: false" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_shell_completion(tmp_path):
    done = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE="train.py tracking=", COMP_POINT="18")
    assert set(done.stdout.split()) == {"tracking=off", "tracking=wandb"}


LOCAL = ["model=local", "data=local", "data.forget=[a.txt]", "data.retain=[a.txt]", "layer=2", "steer=1", "alpha=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from families import make_checkpoint

    return make_checkpoint("mistral", tmp_path_factory.mktemp("base"), shard="12KB")


def _cut(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-7])


def _no_eos(folder: Path) -> None:
    from families import save_tokenizer

    save_tokenizer(folder, unk_token="<unk>", pad_token="w5")


@pytest.mark.parametrize(
    ("spoil", "words", "named"),
    [
        (_cut, [], ["damaged or cut off", "download it again"]),
        (None, ["layer=4"], ["layer: got 4", "0 to 3"]),
        (None, ["train.batch_size=9"], ["train.batch_size: got 9", "a.txt has only 8 usable texts"]),
        (None, ["train.batch_size=9", "method.faithful=true"], ["train.batch_size: got 9", "a.txt"]),
        (_no_eos, ["method.faithful=true"], ["method.faithful", "eos token"]),
        (None, ["data.retain=[gone.jsonl]"], ["gone.jsonl: no such file"]),
    ],
)
def test_a_checkpoint_or_corpus_that_cannot_be_used_leaves_nothing(spoil, words, named, base, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n\n" * 8)
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    if spoil:
        spoil(folder)
    done = train(*LOCAL, "model.path=base", "eval=none", "tracking=off", "output=out/deep", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rmu_exp: ")
    assert all(word in line for word in named)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_status_1_and_leaves_nothing(tmp_path) -> None:
    words = ["model=hf", "model.name=org/model", *LOCAL[1:], "tracking=off", "eval=none", "output=out/deep"]
    done = train(*words, cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "org/model: the hub cannot be reached" in line
    assert not (tmp_path / "out").exists()
