"""Tests that an evaluation loses no results because one of its outputs fails."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cli_calls import called
from result_files import classified, found_texts, samples

from emocap_pretrain.cli.evaluated_model import Evaluation
from emocap_pretrain.cli.evaluation_output import Wanted, give
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.result_file import load
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.samples import Samples

OF = samples(30)


def evaluation(config: Config, of: Samples = OF) -> Evaluation:
    embedder = cast("Embedder", SimpleNamespace(digest=lambda: "ab" * 32, crop="center", reads="center"))
    results = (replace(classified(of, 0.5, seed=1), confusion_matrices=()), found_texts(of, seed=1))
    return Evaluation("runs/tiny", config, embedder, None, results, ())


def wanted(tmp_path: Path, **changes: Any) -> Wanted:
    every = Wanted(str(tmp_path / "a.json"), tmp_path / "a.html", None, None, thumbnails=False, as_json=True, least=2)
    return replace(every, **changes)


def test_a_picture_that_cannot_be_drawn_loses_no_other_output(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="guess, search gives no confusion matrix"):
        give(evaluation(tiny_config), wanted(tmp_path, picture=tmp_path / "a.png"))
    assert [task.result.task for task in load(str(tmp_path / "a.json")).tasks] == ["guess", "search"]
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2
    assert "guessed UAR" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_label_of_too_many_values_hides_no_score(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    named = replace(OF, labels={"name": tuple(f"person {number}" for number in range(30))})
    with pytest.raises(ConfigError, match="--by name: it has more than 24 values"):
        give(evaluation(tiny_config, named), wanted(tmp_path, as_json=as_json))
    assert load(str(tmp_path / "a.json")).samples == (named,)
    assert "guessed UAR" in capsys.readouterr().out


def test_results_that_cannot_be_saved_are_printed(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = replace(OF, keys=("x" * 1100, *OF.keys[1:]))
    with pytest.raises(ConfigError, match="at most 1024"):
        give(evaluation(tiny_config, named), wanted(tmp_path))
    assert not (tmp_path / "a.json").exists()
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2
    assert (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--save", "results"), "results: give a file, such as results.json"),
        (("--save", "{file}/a.json"), "a.json: it cannot be written"),
        (("--save", "{file}/new/a.json"), "a.json: it cannot be written"),
        (("--save", "{folder}/x.json"), "x.json: it cannot be written"),
        (("--picture", "{folder}/absent/a.png"), "a.png: it cannot be written"),
        (("--html", "{folder}/absent/a.html"), "a.html: it cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_the_model_is_read(
    tmp_path: Path, words: tuple[str, str], message: str
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "x.json").mkdir()
    given = [each.format(file=tmp_path / "file", folder=tmp_path) for each in words]
    done = called("evaluate", tmp_path / "no_run", *given)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "no_run" not in done.stderr


def test_results_are_saved_in_a_new_folder(tiny_config: Config, tmp_path: Path) -> None:
    new = wanted(tmp_path, save=str(tmp_path / "new" / "folder" / "a.json"))
    new.check()
    give(evaluation(tiny_config), new)
    assert load(str(tmp_path / "new" / "folder" / "a.json")).model.name == tiny_config.name
