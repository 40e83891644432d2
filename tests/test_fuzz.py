"""A standing attempt to break it: made-up configurations, corpora, checkpoints and run folders.

Whatever comes in: it works, or it is refused in one line; no other error, and no input is changed. The same cases each
time in ``make test``; ``make fuzz`` tries fifty times as many, and others each time.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import a_run
import fuzz
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rmu_exp import data as corpora
from rmu_exp.__main__ import main
from rmu_exp.cli import compose
from rmu_exp.config import plugins
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.run import prepare
from rmu_exp.record import results
from rmu_exp.settings import Data, Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import keys_of

TRIED: Counter[str] = Counter()
GROUPS = [f.name for f in a_run.CONF.iterdir() if f.is_dir()]
KEYS = [*keys_of(Run), *GROUPS, "hydra/launcher", "hydra/sweeper", "hydra.run.dir", "hydra.job.name", "method.faithful"]
KEYS += [f"attacks.{name}.{key}" for name in plugins.files("attacks") for key in plugins.declared("attacks", name)]
SPECIAL = [
    "${layer}",
    "${oc.env:NOWHERE}",
    "${preset}",
    "${now:%Y}",
    "${oc.decode:1+}",
    "[",
    "{",
    "'",
    '"',
    "\\",
    "1,2",
]
SPECIAL += ["[1,2]", "{a:1}", "???", "range(3)", "choice(1,2)", "interval(0,1)", "glob(*)", "null", "[[]]", "all"]
SPECIAL += ["=", "a=b"]
READERS = ["verify", "compare", "resume", "judge", "export"]
FILES = ["c.jsonl", "c.txt", "c.jsonl.gz", "c.txt.gz", "c.parquet", "c.parquet.gz", "c.csv"]
WRITTEN = ["config.yaml", "results.json", "metrics.jsonl", "delta.safetensors", "answers.jsonl"]


def many(count: int):
    """So many cases in ``make test``; more by hypothesis's profile."""
    times = max(1, settings().max_examples // 100)
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.generate] if times == 1 else list(Phase)  # to shrink a find takes minutes
    return settings(
        max_examples=count * times, deadline=None, phases=phases, suppress_health_check=checks, derandomize=times == 1
    )


def spelled(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)


override_values = st.one_of(st.sampled_from(SPECIAL), fuzz.values.map(spelled))
overrides = st.one_of(
    st.builds(lambda k, v: f"{k}={v}", st.sampled_from(KEYS), override_values),
    st.builds(lambda k, v: f"{k}={v}", st.sampled_from(GROUPS), st.sampled_from(list(plugins.files("method")))),
    st.builds(
        lambda sign, k, v: f"{sign}{k}={v}", st.sampled_from(["+", "++", "~"]), st.sampled_from(KEYS), override_values
    ),
    fuzz.words,
)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder of its own, in which nothing may be left; and no hub."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
    assert not list((tmp_path / "cwd").iterdir())


@many(130)
@given(given=st.lists(overrides, min_size=1, max_size=4), multirun=st.booleans())
def test_configurations(given, multirun):
    TRIED["configurations"] += 1
    fuzz.told(lambda: compose.composed([*given, "output=nowhere"], a_run.CONF, multirun=multirun))


FREE = ("layer", "steer", "alpha", "seed", "layers", "steering", "train", "eval")
SAFE = [key for key in keys_of(Run) if key.split(".")[0] in FREE]
SAFE += ["data.min_len", "data.max_length", "data.topics", "data.answer", "model.dtype", "model.threads"]
SAFE += ["method", "attacks"]
pairs = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(SAFE), override_values)


@many(30)
@given(given=st.lists(pairs, min_size=1, max_size=2))
def test_what_a_configuration_starts(tiny_run, given):
    """Those that pass are looked at once more beside the model, as a start does before it writes."""
    TRIED["starts"] += 1
    before = fuzz.contents(tiny_run.parent / "model")
    runs = fuzz.told(lambda: compose.composed([*a_run.words(tiny_run.parent), *given, "output=nowhere"], a_run.CONF))
    if isinstance(runs, list):
        fuzz.told(lambda: prepare(runs[0], Path("nowhere")))
    assert fuzz.contents(tiny_run.parent / "model") == before


good = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda t: bool(t.strip()))
BAD = [b"{", b"[]", b"1", b"null", b'{"text": 1}', b'{"texts": "x"}', b'"\\ud800"', b"\xff\xfe", b"[" * 5000]
raw_lines = st.binary(min_size=1, max_size=20).filter(lambda b: b"\n" not in b and b.strip())
json_lines = fuzz.values.filter(lambda v: not isinstance(v, str)).map(lambda v: json.dumps(v).encode())
bad_lines = st.one_of(st.sampled_from(BAD), st.one_of(raw_lines, json_lines).filter(lambda b: not readable(b)))


def readable(line: bytes) -> bool:
    """Whether a line of .jsonl is a text, by the letter of docs/data.md."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return not line.decode("utf-8", "replace").strip()
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("text"), str))


@many(150)
@given(lines=st.lists(st.one_of(good, bad_lines), max_size=8), flags=st.tuples(*[st.booleans()] * 3))
def test_lines_of_a_corpus(tmp_path, lines, flags):
    """With data.on_bad_line=skip exactly the good ones are read; else the first bad one is named."""
    TRIED["corpora"] += 1
    skip, zipped, bare = flags
    raw = [json.dumps(x if bare else {"text": x}).encode() if isinstance(x, str) else x for x in lines]
    file = tmp_path / ("c.jsonl" + ".gz" * zipped)
    content = b"\n".join(raw)
    file.write_bytes(gzip.compress(content) if zipped else content)
    read = fuzz.told(lambda: corpora.one(str(file), Data(on_bad_line="skip" if skip else "error")))
    wanted = [x for x in lines if isinstance(x, str)]
    first = [i for i, x in enumerate(lines, 1) if isinstance(x, bytes)]
    if first and not skip:
        assert isinstance(read, UserError)
        assert f"line {first[0]}:" in str(read)
    elif wanted:
        assert read.texts == wanted
        assert read.bad_lines == len(first)
    else:
        assert isinstance(read, UserError)


@many(80)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_files_of_a_corpus(tmp_path, data, name):
    TRIED["corpora"] += 1
    whole = b"\n".join(json.dumps({"text": f"text {i}"}).encode() for i in range(20))
    wholes = [gzip.compress(whole), whole, parquet()]
    content = data.draw(st.one_of(*map(fuzz.damaged, wholes), st.binary()))
    (tmp_path / name).write_bytes(content)
    fuzz.told(lambda: corpora.one(str(tmp_path / name), Data()))
    assert (tmp_path / name).read_bytes() == content


def parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": [f"text {i}" for i in range(20)]}), sink)
    return bytes(sink.getvalue())


@many(80)
@given(data=st.data())
def test_checkpoints(tiny_run, data):
    TRIED["checkpoints"] += 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(tiny_run.parent / "model", Path(name) / "model"))
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        if data.draw(st.integers(0, 9)):
            file.write_bytes(data.draw(fuzz.changed_file(file)))
        else:
            file.unlink()
        before = fuzz.contents(folder)
        fuzz.told(lambda: use(folder))
        assert fuzz.contents(folder) == before


def use(folder: Path) -> None:
    """All that a run does with a checkpoint."""
    checkpoint = locate(None, str(folder))
    assert checkpoint.depth >= 0
    checkpoint.skeleton(2)
    checkpoint.tokenizer()("the river runs")
    checkpoint.digest()
    checkpoint.open(2, torch.float32, torch.device("cpu"))
    checkpoint.open(None, torch.float32, torch.device("cpu"))


@many(60)
@given(data=st.data(), name=st.sampled_from(WRITTEN), use=st.sampled_from(READERS))
def test_run_folders(tiny_run, data, name, use):
    """A run's folder with one file changed, given to what reads run folders."""
    TRIED["run folders"] += 1
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(tiny_run, Path(parent) / "run", ignore=shutil.ignore_patterns("model", "plots")))
        content = data.draw(fuzz.changed_file(folder / name))
        (folder / name).write_bytes(content)
        before = fuzz.contents(folder)
        if use == "verify":
            status, _ = fuzz.command(main, ["verify", str(folder)])
            assert status or claims(folder).items() <= claims(tiny_run).items(), f"{name}: not seen by verify"
        elif use == "compare":
            fuzz.command(main, ["compare", str(tiny_run), str(folder)])
        elif use == "export":
            fuzz.command(main, ["export", str(folder), str(Path(parent) / "out")])
        elif use == "resume":
            fuzz.told(lambda: prepare(run_of(tiny_run.parent), folder))
        else:
            judged = [f"unlearned={folder}", "eval.tasks=[lore_forget]", "model.oracle=null", "output=x"]
            fuzz.told(lambda: start_judging(judged))
        assert fuzz.contents(folder) == before


@cache
def run_of(folder: Path) -> Run:
    given = [*a_run.words(folder), "attacks=[norms]", "export=true", "output=x"]
    return compose.composed(given, a_run.CONF)[0]


def start_judging(given: list[str]) -> None:
    (judge,) = compose.composed(given, a_run.CONF, name="judge")
    prepare(judge, Path("x"))


def claims(folder: Path) -> dict[str, str]:
    """What a run's folder says that verify recomputes, by place. A claim that is left out is none."""
    told: Any = results.load(folder / "results.json").content()
    found: dict[str, Any] = {"delta": Delta.load(folder / "delta.safetensors").digest()}
    for task, row in told.get("qa", {}).items():
        for who in {"base", "unlearned"} & row.keys():
            found |= {f"{task} {who} {key}": row[who][key] for key in ("acc", "stderr", "ci95", "n")}
        found |= {f"{task} mcnemar {key}": row["mcnemar"][key] for key in ("lost", "gained", "p") if "mcnemar" in row}
        found |= {f"{task} p_chance": row["p_chance"]} if "p_chance" in row else {}
    for name, entry in told.get("attacks", {}).items():
        for key in {"forget_acc", "ci95"} & entry.keys():
            found |= {f"{name} {key} {when}": entry[key][when] for when in ("before", "after")}
    origin = told.get("provenance", {})
    for key in {"config", "config_hash", "data_hashes", "model_digest", "delta_digest"} & origin.keys():
        found[key] = origin[key]
    found |= {"steps": told["train"]["steps"]} if "train" in told else {}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}


@many(16)
@given(data=st.data(), name=st.sampled_from([*WRITTEN[:3], "trial.json"]), use=st.sampled_from(["table", "sweep"]))
def test_folders_of_runs(tiny_run, data, name, use):
    """The reports over many runs, of which one is changed: made, or refused."""
    TRIED["run folders"] += 1
    with tempfile.TemporaryDirectory() as parent:
        for trial in ("a", "b"):
            shutil.copytree(tiny_run, Path(parent) / trial, ignore=shutil.ignore_patterns("model", "plots"))
            (Path(parent) / trial / "trial.json").write_text(json.dumps({"number": 1, "settings": {"steer": trial}}))
        file = Path(parent) / "b" / name
        file.write_bytes(data.draw(fuzz.changed_file(file)))
        before = fuzz.contents(Path(parent))
        fuzz.command(main, [use, parent])
        after = fuzz.contents(Path(parent))
        assert {f: after[f] for f in before} == before


def test_enough_was_tried():
    if len(TRIED) < 5:
        pytest.skip("counts the inputs of the whole file")
    print(dict(TRIED))
    assert sum(TRIED.values()) >= 500
