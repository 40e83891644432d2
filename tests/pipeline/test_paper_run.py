"""The paper's run, `python train.py model=zephyr_7b data=wmdp`, against a hub on the loopback with small stand-ins."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import standins
import torch
import yaml
from families import make_checkpoint
from hub import Hub

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "train.py")
ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
TOKEN = "hf_reader"
REVISION = "v0.1"
RUN = ["model=zephyr_7b", "data=wmdp", f"model.revision={REVISION}", "tracking=off", "eval.limit=2"]
FEW = [
    "eval.tasks=[wmdp_bio,wmdp_cloze,mmlu_virology,mmlu_virology_continuation]"
]  # the whole of MMLU takes its time to load
TRAINED = [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)]
SUBJECTS = ("mmlu_virology", "mmlu_college_biology", "mmlu_computer_security", "mmlu_college_computer_science")


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of Zephyr's kind: begins every text with <s>, has no pad token; one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({s: i for i, s in enumerate(["<unk>", "<s>", "</s>", *signs])}, merges=[]))
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    own = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **own).save_pretrained(folder)


def mmlu(folder: Path) -> Path:
    """All 57 subjects, with as short a card as there can be: datasets parses it anew for each."""
    import lm_eval.tasks

    tasks = Path(str(lm_eval.tasks.__file__)).parent / "mmlu" / "default"
    names = [yaml.safe_load(file.read_text())["dataset_name"] for file in tasks.glob("mmlu_*.yaml")]
    assert len(names) == 57
    return standins.write(folder, {s: {k: standins.questions(5, s) for k in ("test", "dev")} for s in sorted(names)})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = tmp_path_factory.mktemp("repositories")
    make_checkpoint("mistral", made / "zephyr", layers=12, shard="20KB", vocab_size=300, dtype=torch.bfloat16)
    save_byte_tokenizer(made / "zephyr")
    sets = standins.question_sets(made) | {standins.MMLU: mmlu(made / "all of mmlu")}
    with Hub() as hub:
        hub.add(ZEPHYR, made / "zephyr", revision=REVISION)
        (made / "zephyr" / "config.json").write_text("{}")  # the newest version is not the one that is asked for
        hub.add(ZEPHYR, made / "zephyr")
        for name, folder in (standins.corpora(made) | sets).items():
            hub.add(name, folder, kind="dataset", gated=name == standins.BIO)
        hub.tokens = {TOKEN: {standins.BIO}}
        yield hub


def run(program: list[str], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    env = env | {"RMU_EXP_CACHE": str(cwd / ".cache")}
    return subprocess.run(
        [sys.executable, *program], env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def weights(hub: Hub) -> int:
    """How many transfers of Zephyr's weight files were begun."""
    return sum(n for key, n in hub.downloads.items() if key.startswith(ZEPHYR) and key.endswith(".safetensors"))


@pytest.fixture(scope="module")
def online(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, as the paper's row is typed, with a token that opens the gated corpus."""
    place = tmp_path_factory.mktemp("online")
    done = run([TRAIN, *RUN, "output=run"], hub.env(place / "home", token=TOKEN), place)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "wmdp_bio" in done.stdout
    return place / "run"


def test_the_papers_settings_are_what_runs(hub: Hub, online: Path) -> None:
    results = json.loads((online / "results.json").read_text())
    ran = results["run"]
    assert (ran["layer"], ran["steer"], ran["alpha"]) == (7, [6.5, 6.5], [1200, 1200])
    assert (ran["method"], ran["faithful"], ran["seed"]) == ("rmu", True, 42)
    assert ran["topics"] == ["bio", "cyber"]
    assert ran["trained_parameters"] == TRAINED
    assert results["train"]["steps"] == 2  # of 150: five texts make two batches, and the shortest corpus ends the run
    topics = [json.loads(line)["topic"] for line in (online / "metrics.jsonl").read_text().splitlines()]
    assert topics == ["bio", "cyber"]
    config = yaml.safe_load((online / "config.yaml").read_text())
    preset = {"lr": 5e-5, "schedule": "constant", "batch_size": 4, "max_batches": 150}
    assert {key: config["train"][key] for key in preset} == preset
    assert config["data"]["min_len"] == 0
    assert results["provenance"]["model_revision"] == hub.repos["model", ZEPHYR].refs[REVISION]
    sources = [standins.BIO, f"{standins.CORPORA}:{standins.CYBER_CONFIG}"]
    sources += [f"{standins.WIKITEXT}:{standins.WIKITEXT_CONFIG}:test"]
    assert list(results["provenance"]["data_hashes"]) == sources


def test_the_papers_questions_are_asked_and_shown_beside_its_numbers(online: Path) -> None:
    qa = json.loads((online / "results.json").read_text())["qa"]
    assert {name: qa[name]["unlearned"]["n"] for name in ("wmdp_bio", "wmdp_cyber", "wmdp_chem", "mmlu")} == {
        "wmdp_bio": 2,
        "wmdp_cyber": 2,
        "wmdp_chem": 2,
        "mmlu": 114,
    }
    report = (online / "report.md").read_text()
    for published in yaml.safe_load((ROOT / "conf/model/zephyr_7b.yaml").read_text(encoding="utf-8"))["published"]:
        assert f"] {published['source']}; questions: {published['questions']}\n" in report
    for subject in SUBJECTS:
        assert f"\n| {subject} | unlearned | 2 |" in report


def test_without_a_token_one_line_names_the_page(hub: Hub, tmp_path: Path) -> None:
    before = weights(hub)
    done = run([TRAIN, *RUN, "eval=none", "output=run"], hub.env(tmp_path / "home"), tmp_path / "here")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rmu_exp: {standins.BIO}: a gated dataset; ask for access at ")
    assert f"https://huggingface.co/datasets/{standins.BIO}," in line
    assert "hf auth login" in line
    assert [path.name for path in (tmp_path / "here").iterdir() if path.name != ".cache"] == []
    assert weights(hub) == before


def test_what_is_fetched_runs_offline_to_the_same_delta(hub: Hub, online: Path, tmp_path: Path) -> None:
    fetched = run(["-m", "rmu_exp", "fetch", "folder", *RUN, *FEW], hub.env(tmp_path / "home", token=TOKEN), tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.startswith(f"model {ZEPHYR}@{REVISION}: all layers, at commit ")
    words = shlex.split(fetched.stdout.splitlines()[-1])
    at = words.index("python")
    assert words[at : at + 3] == ["python", "train.py", RUN[0]]

    asked = len(hub.requests)
    env = hub.env(tmp_path / "home") | dict(setting.split("=") for setting in words[:at])
    done = run([TRAIN, *words[at + 2 :], "output=run"], env, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == asked
    qa = json.loads((tmp_path / "there/run/results.json").read_text())["qa"]
    clozes = {"wmdp_cloze", "wmdp_bio_cloze", "wmdp_cyber_cloze", "wmdp_chem_cloze", "mmlu_virology_continuation"}
    assert set(qa) == {"wmdp_bio", "mmlu_virology"} | clozes
    answers = [json.loads(line) for line in (tmp_path / "there/run/answers.jsonl").read_text().splitlines()]
    for task in {answer["task"] for answer in answers}:  # the option that is reported is the one lm-eval took
        right = [answer["unlearned"] == answer["target"] for answer in answers if answer["task"] == task]
        assert qa[task]["unlearned"]["acc"] == sum(right) / len(right)
    assert (tmp_path / "there/run/delta.safetensors").read_bytes() == (online / "delta.safetensors").read_bytes()


OURS = ("hf", "local", "lore", "smollm2_135m")  # which no paper has


def preset_row(file: Path) -> str:
    """A preset as docs/paper.md's table has it."""
    model = yaml.safe_load(file.read_text(encoding="utf-8"))
    text = (ROOT / "conf/preset" / file.name).read_text(encoding="utf-8")
    preset, source = yaml.safe_load(text), text.splitlines()[1].removeprefix("# Source: ").removesuffix(".")
    steer, alpha = (preset[k][0] if isinstance(preset[k], list) else preset[k] for k in ("steer", "alpha"))
    parameters = ", ".join(f"`{name}`" for name in model.get("parameters", ["mlp.down_proj.weight"]))
    loop = "published" if (ROOT / f"conf/method_model/rmu_{file.name}").is_file() else "default"
    cells = [
        f"`{file.stem}`",
        model["name"],
        preset["layer"],
        parameters,
        steer if steer == "auto" else f"{steer:g}",
        f"{alpha:g}",
    ]
    train = preset["train"]
    lr = f"{float(train['lr']):.0e}".replace("e-0", "e-") if "lr" in train else "by rule"
    cells += [lr, train["batch_size"], train["max_batches"]]
    cells += [preset.get("data", {}).get("min_len", 0), preset.get("seed", 0), loop]
    cells.append("untuned" if source.startswith("# Untuned") else source)
    return "| " + " | ".join(map(str, cells)) + " |"


def test_the_page_about_the_paper_has_every_preset_as_it_is() -> None:
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    files = [file for file in sorted((ROOT / "conf/model").glob("*.yaml")) if file.stem not in OURS]
    rows = re.findall(r"^\| `\w+` \| [\w-]+/.*$", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(preset_row(file) for file in files)


def test_the_page_about_the_paper_has_every_published_number() -> None:
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    for file in (ROOT / "conf/model").glob("*.yaml"):
        for published in yaml.safe_load(file.read_text(encoding="utf-8")).get("published", []):
            for state in ("base", "unlearned"):
                for task, value in published.get(state, {}).items():
                    assert f"| {file.stem} | {published['source']} | {state} | {task} | {100 * value:.1f} |" in page
