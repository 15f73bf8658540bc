"""Tests `emocap sweep`: which runs it makes, and that it compares finished runs without training them again."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from cli_calls import called
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT, shown_on
from PIL import Image
from tiny_run import tiny

from emocap_pretrain.cli.app import app
from emocap_pretrain.cli.sweep import members_of, split_values
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "cfg.yaml"
    tree = tiny(str(tmp_path / "run"), "data/faces", "sqlite:///mlflow.db", None)
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


words = st.text("ab1.-_ ", min_size=1, max_size=5).map(str.strip).filter(bool)
value = (
    words | st.lists(words, min_size=1, max_size=3).map(lambda each: f"[{','.join(each)}]") | words.map("'{},x'".format)
)


@given(st.lists(value, min_size=1, max_size=5, unique=True))
def test_values_are_divided_at_commas_outside_of_brackets_and_quotes(values: list[str]) -> None:
    assert split_values(",".join(values)) == values


def test_each_combination_is_a_run_with_its_own_folder_and_a_tag(recipe: Path, tmp_path: Path) -> None:
    members = members_of(recipe, ["optimizer.lr=1e-3,2e-3", "model.image.freeze=0,null", "steps=3"])
    assert [each.label for each in members] == [
        "lr=1e-3,freeze=0",
        "lr=1e-3,freeze=null",
        "lr=2e-3,freeze=0",
        "lr=2e-3,freeze=null",
    ]
    assert len({each.url for each in members}) == 4
    config = load(recipe, members[2].overrides)
    assert (config.optimizer.lr, config.model.image.freeze, config.steps) == (2e-3, 0, 3)
    assert config.url == members[2].url == f"{tmp_path}/run-sweep/lr=2e-3,freeze=0"
    assert config.name == "tiny-lr-2e-3-freeze-0"
    assert config.tracking.tags == {"sweep": "tiny"}


def test_keys_that_end_alike_are_named_in_full(recipe: Path) -> None:
    first, _ = members_of(recipe, ["model.image.freeze=0", "model.text.freeze=0,null"])
    assert first.label == "freeze=0"
    both = members_of(recipe, ["model.image.freeze=0,null", "model.text.freeze=0,null"])
    assert both[0].label == "model.image.freeze=0,model.text.freeze=0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["optimizer.lr=1e-3"], "no key has several values"),
        (["optimizer.lr=1e-3,1e-3"], "must be different"),
        (["optimizer.lr=1e-3,"], "not empty"),
        (["optimizer.lr"], "not of the form"),
        (["optimizer.lr=1,2", "optimizer.lr=3,4"], "given twice"),
        (["url=a,b"], "cannot be swept"),
        (["optimizer.lr=1e-3,-1"], "optimizer.lr"),
        (["optimizer.lr=" + ",".join(map(str, range(1, 202)))], "more than 200"),
        (["tracking.experiment='a b','a/b'"], "the same folder"),
    ],
)
def test_a_wrong_sweep_is_refused_before_the_first_run(values: list[str], words: str, recipe: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        members_of(recipe, values)


def takes_the_place_of_a_run(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr("emocap_pretrain.cli.sweep.PRETRAIN", (sys.executable, "-S", "-c", script))


def test_a_run_that_fails_does_not_end_the_sweep_and_a_stop_does(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes_the_place_of_a_run(monkeypatch, "import sys; sys.exit({'0.1': 1, '0.3': 75}.get(sys.argv[2][-3:], 0))")
    done = called("sweep", recipe, "optimizer.lr=0.1,0.2")
    assert (done.exit_code, done.stdout.count("Run ")) == (1, 3)
    assert "Run 1 has ended with exit code 1" in done.stdout
    assert "0 of 2 runs are done" in done.stdout
    done = called("sweep", recipe, "optimizer.lr=0.2,0.3,0.4")
    assert (done.exit_code, "Run 2" in done.stdout, "Run 3" in done.stdout) == (75, True, False)


# Asks the sweep to stop as a user does, and ends as a run that saves. SIGTERM reaches only the sweep, which passes it
# on; a terminal sends Ctrl-C to both.
_SAVES = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getppid(), signal.NUMBER)
signal.NUMBER == signal.SIGTERM and signal.sigwait({signal.SIGTERM})
sys.exit(CODE)
"""


@pytest.mark.parametrize(
    ("number", "code", "ends"), [("SIGTERM", 75, 75), ("SIGTERM", 0, 75), ("SIGINT", 75, 75), ("SIGINT", 0, 130)]
)
def test_a_sweep_that_is_asked_to_stop_waits_until_its_run_has_saved(
    number: str, code: int, ends: int, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_the_place_of_a_run(monkeypatch, _SAVES.replace("NUMBER", number).replace("CODE", str(code)))
    done = called("sweep", recipe, "optimizer.lr=1e-3,2e-3")
    assert (done.exit_code, "Run 2" in done.stdout) == (ends, False), done.output
    assert "the same command continues it" in done.stdout


def test_only_the_table_is_printed_to_standard_output_as_json(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    takes_the_place_of_a_run(monkeypatch, "print('a line of the run')")
    with pytest.raises(SystemExit, match="0"):
        app(["sweep", str(recipe), "optimizer.lr=1e-3,2e-3", "--json"])
    out, err = capfd.readouterr()
    assert [each["done"] for each in json.loads(out)] == [False, False]
    assert (err.count("a line of the run"), err.count("Run ")) == (2, 2)


def test_a_dry_run_prints_the_command_of_each_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes_the_place_of_a_run(monkeypatch, "")
    done = called("sweep", recipe, "optimizer.lr=1e-3,2e-3", "--dry-run")
    first = next(line for line in done.stdout.splitlines() if line.startswith("emocap pretrain"))
    assert load(recipe, shlex.split(first)[3:]).name == "tiny-lr-1e-3"
    assert called("sweep", recipe, "optimizer.lr=1e-3,2e-3", "--dry-run", "--table").exit_code == 2


def test_finished_runs_are_compared_and_not_trained_again(finished_run: Config, tmp_path: Path) -> None:
    tree = finished_run.stored()
    # The folder of the finished run is that of one member.
    base = tmp_path / "own"
    shutil.copytree(finished_run.url, tmp_path / "own-sweep" / "lr=1e-3")
    recipe = tmp_path / "cfg.yaml"
    recipe.write_text(yaml.safe_dump(tree | {"url": str(base)}), encoding="utf-8")
    done = called("sweep", recipe, "optimizer.lr=1e-3,2e-3", "--table", "--json")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)
    assert (first["done"], second["done"]) == (True, False)
    assert set(first["scores"]) == {"zero_shot/uar", next(name for name in first["scores"] if "retrieval" in name)}
    shown = called("sweep", recipe, "optimizer.lr=1e-3,2e-3", "--table").stdout
    assert "1 of 2 runs are done" in shown
    assert "zero_shot/uar" in shown


def test_each_run_of_the_sweeps_on_the_page_about_rates_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page sweeps the config that `emocap init` writes for folders of classes. Its longer sweeps are never run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    for number in range(110):
        file = tmp_path / "faces" / ("fear" if number % 2 else "joy") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (number, 100, 100)).save(file)
    first = called("init", "faces", "--out", "faces.yaml", "--weights", "packages").stdout.partition("next")[2]
    first = first.replace("\\\n", " ")  # Long commands are printed on several lines.
    assert called(*shlex.split(first.partition("emocap pretrain")[0])[1:]).exit_code == 0
    sweeps = [each.words for each in shown_on(ROOT / "docs/rates-and-freezing.md") if each.words[1] == "sweep"]
    # `members_of` loads the config of each run. One run for each frozen depth is checked as before a start.
    runs: dict[str, tuple[str, ...]] = {}
    for words in sweeps:
        for member in members_of(Path(words[2]), [word for word in words[3:] if not word.startswith("--")]):
            depth = next((each for each in member.overrides if each.startswith("model.image.freeze=")), "as it is")
            runs[depth] = member.overrides
    assert runs.keys() == {"as it is", *(f"model.image.freeze={depth}" for depth in ("0", "4", "8", "all"))}
    trained: list[str] = []
    for depth, overrides in runs.items():
        done = called("pretrain", "faces.yaml", *overrides, "--dry-run")
        assert (done.exit_code, done.stderr) == (0, ""), f"{depth}: {done.output}"
        (image,) = (line for line in done.stdout.splitlines() if "image tower: " in line)
        trained.append(image.partition("image tower: ")[2])
    assert trained[-1].startswith("frozen")
    assert len(set(trained)) == 5, "each depth trains another number of parameters"
