"""Tests the output and the exit codes of `emocap doctor`."""

import json
from pathlib import Path

import pytest
import yaml
from cli_calls import called
from emocap_shards.inspecting.wording import WIDTH

from emocap_pretrain.cli.doctor import inputs_of, lines
from emocap_pretrain.config.schema import Config
from emocap_pretrain.doctor import CHECKS, CheckResult


@pytest.fixture
def recipe(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "cfg.yaml"
    file.write_text(yaml.safe_dump(tiny_config.stored()), encoding="utf-8")
    return file


def test_each_check_is_one_line_that_fits_a_terminal(recipe: Path) -> None:
    done = called("doctor", recipe)
    *found, summary = done.stdout.splitlines()
    assert summary.endswith("skipped")
    results = [line for line in found if not line.startswith(" ")]
    assert {line[9:24].strip() for line in results} == {"config", *dict(CHECKS)}
    assert {line.split()[0] for line in results} <= {"ok", "warn", "fail", "skipped"}
    assert max(map(len, found)) <= WIDTH
    # A check that has nothing to advise takes one line.
    advised = sum(line.startswith(("warn", "fail")) for line in results)
    assert len(found) <= len(results) + 5 * advised


def test_a_check_that_fails_gives_exit_code_1_and_json_says_which(recipe: Path) -> None:
    done = called("doctor", recipe, "url=/proc/run", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    failed = {each["check"] for each in found["checks"] if each["status"] == "fail"}
    assert {"disk", "run folder"} <= failed
    assert found["failed"] >= 2
    assert all(each["cure"] for each in found["checks"] if each["status"] == "fail")


def test_a_wrong_config_gives_exit_code_2(recipe: Path) -> None:
    assert called("doctor", recipe, "steps=-1").exit_code == 2
    assert called("doctor", "absent.yaml").exit_code == 2


def test_no_secret_is_printed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "0.3")
    monkeypatch.setenv("PLACE", "http://anna:open-sesame@127.0.0.1:1/faces")
    for extra in ([], ["--json"]):
        done = called("doctor", recipe, "tracking.uri=${oc.env:PLACE}", "data.url=${oc.env:PLACE}", *extra)
        assert done.exit_code == 1
        assert "open-sesame" not in done.output


def test_a_missing_source_of_weights_is_a_failed_check_and_the_others_run(recipe: Path) -> None:
    done = called("doctor", recipe, "model.image.pretrained=/absent/weights.pth")
    assert done.exit_code == 1
    assert done.stdout.startswith("fail     config")
    assert "run folder" in done.stdout


def test_the_inputs_follow_from_the_config(tiny_config: Config) -> None:
    inputs = inputs_of(tiny_config, tiny_config, lock=None, probe_bytes=1)
    # The evaluation reads the same dataset, which is examined once.
    assert inputs.datasets == {"data.url": tiny_config.data.url}
    assert inputs.batch_bytes == 8 * 3 * 16 * 16
    assert inputs.checkpoint_bytes is not None
    assert inputs.checkpoint_bytes > 3 * 4 * 10_000


def test_a_long_result_is_broken_into_aligned_lines() -> None:
    found = lines("disk", CheckResult("fail", "word " * 30, "do this " * 20))
    assert max(map(len, found)) <= WIDTH
    assert all(line.startswith(" " * 24) for line in found[1:])
    assert sum("-> " in line for line in found) == 1
