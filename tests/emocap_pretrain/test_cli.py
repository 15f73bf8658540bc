import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import read_manifest
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from PIL import Image
from pretrain_fakes import stand_alone
from typer.testing import CliRunner

from emocap_pretrain import run, terminal
from emocap_pretrain.checkpoint.state import Progress
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Failure, Status
from emocap_pretrain.terminal import Command
from emocap_pretrain.training.session import open_session


@dataclass(frozen=True)
class Done:
    """Holds the exit code and the output of a command."""

    code: int
    out: str
    err: str


def emocap(*arguments: str | Path, columns: int = 200) -> Done:
    """Runs the command line in a new process."""
    command = [sys.executable, "-m", "emocap_pretrain.cli", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": str(columns)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=env)
    return Done(done.returncode, done.stdout, done.stderr)


def here(*arguments: str | Path) -> Done:
    """Runs the command line in this process, which is faster."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Writes three captioned images as a .jsonl table."""
    rows: list[dict[str, object]] = []
    for number in range(3):
        Image.new("RGB", (20, 20), (number * 80, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png",
                "global": f"Face {number}.",
                "local": ["Eyes wide."],
                "summary": f"Glad, number {number}.",
                "emotion": "joy" if number else "fear",
            }
        )
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def packed(table: Path, tmp_path: Path) -> Path:
    out = tmp_path / "packed"
    assert here("pack", table, out, "--label", "emotion").code == 0
    return out


def test_synth_renders_two_datasets_and_keeps_those_that_exist(tmp_path: Path) -> None:
    command = ("synth", tmp_path / "faces", "--train", "6", "--test", "3", "--pixels", "32", "--samples-per-shard", "4")
    done = here(*command)
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "faces" / "train").samples == 6
    assert read_manifest(tmp_path / "faces" / "test").samples == 3
    assert verify(tmp_path / "faces" / "train").whole
    before = read_manifest(tmp_path / "faces" / "train").digest
    again = here(*command)
    assert again.code == 0
    assert again.out.count("exists already") == 2
    assert read_manifest(tmp_path / "faces" / "train").digest == before
    other = here(*command[:3], "5", *command[4:])
    assert other.code != 0
    assert "6 samples, not 5" in other.err


def test_pack_writes_the_rows_of_a_table(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert manifest.samples == 3
    assert verify(packed).whole


def flip_a_byte(dataset: Path) -> Path:
    (shard,) = dataset.glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    return shard


def test_inspect_prints_a_summary_of_a_dataset(packed: Path) -> None:
    done = emocap("inspect", packed, columns=80)
    assert done.code == 0, done.err
    assert "3 samples in 1 shard," in done.out
    assert "exact, from the manifest" in done.out
    assert "from 3 samples, every one of them" in done.out
    assert re.search(r"joy +2 +66.7 %", done.out)
    assert "Glad, number 1." in done.out
    assert max(map(len, done.out.splitlines())) <= max(80, len(str(packed)))


def test_inspect_writes_one_page_and_prints_json(packed: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = here("inspect", packed, "--html", page, "--json", "--look-at", "2")
    assert done.code == 0, done.err
    assert json.loads(done.out)["looked"]["samples"] == 2
    assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 2
    refused = here("inspect", packed, "--html", tmp_path / "no" / "such" / "page.html")
    assert refused.code == 2
    assert "it cannot be written" in refused.err


EVIL = "A [bold]glad[/] \x1b[31mface\u202e \x1b]8;;http://stranger\x1b\\\\link\r\x9b2J <b onclick=x>."
STEERING = set("\x1b\x07\x9b\r\u202e")


def test_no_text_of_a_dataset_controls_the_terminal(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "ev\x1b[2Jil.png")
    rows = [
        {"image": "0.png", "global": EVIL, "local": [EVIL], "summary": EVIL, "emotion": EVIL, EVIL: 1},
        {"image": "ev\x1b[2Jil.png", "global": "x"},
        {"image": f"{EVIL}.png", "global": "x"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + f"\n{{{EVIL}\n")
    out, page = tmp_path / "out", tmp_path / "page.html"
    labels = ("--label", "emotion", "--label", EVIL)
    refused = here("pack", tmp_path / "t.jsonl", out, *labels)
    packed = here("pack", tmp_path / "t.jsonl", out, *labels, "--skip-bad", "9")
    assert packed.code == 0, packed.err
    told = here("inspect", out, "--html", page)
    assert "A [bold]glad[/] \ufffd[31mface\ufffd" in told.out
    as_json = here("inspect", out, "--json")
    flip_a_byte(out)
    damaged, damaged_json = here("verify", out), here("verify", out, "--json")
    missing = here("inspect", tmp_path / EVIL.replace("/", ""))
    assert (refused.code, told.code, damaged.code, missing.code) == (1, 0, 1, 2)
    for done in (refused, packed, told, as_json, damaged, damaged_json, missing):
        assert not STEERING & set(done.out + done.err), done
    assert json.dumps(EVIL)[1:-1] in json.dumps(json.loads(as_json.out))
    text = page.read_text(encoding="utf-8")
    assert not STEERING & set(text)
    assert "<b onclick" not in text


@pytest.mark.parametrize("command", ["inspect", "verify", "status", "evaluate"])
def test_a_secret_in_a_url_on_the_command_line_is_not_repeated(command: str) -> None:
    done = here(command, "s3://KEY:SE/CRET@faces/train")
    assert done.code in {1, 2}
    assert "s3://***@faces/train: this URL must not contain credentials" in done.err
    assert "CRET" not in done.out + done.err


def test_no_text_of_a_run_controls_the_terminal(tmp_path: Path) -> None:
    attempt = Attempt.begin(open_store(str(tmp_path / "run")))
    attempt.write_status(Status(at=1.0, name=EVIL, hosts=(EVIL, "b"), state=EVIL))
    attempt.record_failure(Failure(rank=0, host=EVIL, kind="OSError", message=f"{EVIL} s3://KEY:SE/CRET@faces"))
    for option in ((), ("--json",)):
        done = here("status", tmp_path / "run", *option)
        assert done.code == 0, done.err
        assert not STEERING & set(done.out + done.err)
        assert "CRET" not in done.out
    assert not [path for path in (tmp_path / "run").rglob("*.json") if "CRET" in path.read_text()]


def test_verify_ends_with_0_for_a_whole_dataset_and_1_for_a_damaged_one(packed: Path) -> None:
    whole = here("verify", packed)
    assert whole.code == 0, whole.err
    assert "Intact: 3 samples in 1 shard" in whole.out
    shard = flip_a_byte(packed)
    damaged = here("verify", packed)
    assert damaged.code == 1
    assert damaged.out.startswith(shard.name)
    assert "1 of 3 samples is lost" in damaged.out
    assert "Traceback" not in damaged.err
    quick = here("verify", packed, "--quick", "--json")
    assert quick.code == 0
    assert json.loads(quick.out)["whole"] is True


def test_verify_counts_no_shards_of_a_manifest_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    done = here("verify", tmp_path)
    assert done.code == 1
    assert "0 samples in 0 shards, " in done.out


def test_verify_prints_at_most_show_faults_and_counts_all(packed: Path) -> None:
    flip_a_byte(packed)
    done = here("verify", packed, "--show", "0")
    assert done.code == 1
    assert "1 further fault" in done.out
    found = here("verify", packed, "--json")
    assert found.code == 1
    assert json.loads(found.out)["kinds"] == {"changed bytes": 1}


def test_verify_has_different_exit_codes_for_damage_and_for_nothing_to_check(packed: Path) -> None:
    manifest = packed / "manifest.json"
    honest = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(honest) | {"schema": 99}))
    later = here("verify", packed)
    assert later.code == 2
    assert "schema 99" in later.err
    manifest.write_text(honest[:50])
    assert here("verify", packed).code == 1
    manifest.unlink()
    assert here("verify", packed).code == 2


def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.yaml"
    done = emocap("pretrain", missing)
    assert done.code == 2
    assert done.err.strip().count("\n") == 0
    assert done.err.startswith("error: ")
    assert str(missing) in done.err


@pytest.mark.parametrize("command", ["pack", "inspect", "verify", "evaluate"])
def test_every_command_reports_a_missing_argument_in_one_line(command: str, tmp_path: Path) -> None:
    arguments = (tmp_path / "nothing.csv", tmp_path / "out") if command == "pack" else (tmp_path / "nothing",)
    done = here(command, *arguments)
    assert done.code in {1, 2}
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "nothing") in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = emocap("pretrain", tmp_path / "nothing.yaml", "--debug")
    assert done.code not in {0, 2}
    assert "Traceback" in done.err
    assert "ConfigError" in done.err


def test_a_wrong_value_is_reported_with_its_place_before_anything_starts(tiny_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    done = here("pretrain", path, "optimizer.lr=-1")
    assert done.code == 2
    assert "optimizer.lr" in done.err
    assert not Path(tiny_config.url).exists()


def test_a_dry_run_prints_config_and_plan_and_starts_nothing(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.console, "_width", 200)  # No line of the plan is broken.
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    done = here("pretrain", path, "steps=77", "--dry-run", "--full")
    assert done.code == 0, done.err
    assert "steps: 77" in done.out
    assert re.search(r"global 8 over 1 rank, 8 rows each in one pass", done.out)
    assert not Path(tiny_config.url).exists()


def test_help_imports_no_framework() -> None:
    names = sorted(paths(typer.main.get_command(app)))
    assert {("pretrain",), ("checkpoints", "list")} <= set(names)
    code = (
        "import sys\nfrom emocap_pretrain.cli.app import app\n"
        f"for command in {[(), *names]}:\n"
        "    try:\n        app([*command, '--help'])\n    except SystemExit as end:\n        assert end.code == 0\n"
        "    heavy = {'torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'timm'} & set(sys.modules)\n"
        "    assert not heavy, f'{command} imported {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 1 + len(names)


def paths(group: Any) -> Iterator[tuple[str, ...]]:
    """Yields the words of each command below a group, such as `("checkpoints", "list")`. Groups are not commands."""
    for name, each in group.commands.items():
        below = paths(each) if hasattr(each, "commands") else [()]
        yield from ((name, *rest) for rest in below)


def test_evaluate_prints_the_result_of_a_checkpoint_and_draws_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_alone()
    torch.set_num_threads(1)
    monkeypatch.setattr(terminal.console, "_width", 200)  # No line of the table is broken within a path.
    start = Attempt.begin(open_store(tiny_config.url))
    alone = RankGroup(Rank(), "cpu", None)
    with open_session(tiny_config, alone, start, alone) as session:
        batch, cursor, _ = next(session.batches)
        session.engine.train(batch)
        session.save(cursor, Progress())
        session.saver.wait()
    url = tiny_config.evaluation.url
    unnamed = here("evaluate", tiny_config.url)
    assert unnamed.code == 2
    assert f"names the dataset {url}, and its author may not be you: allow it with --stored-data" in unnamed.err
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(tiny_config.stored()), encoding="utf-8")
    for named in (["--data", url], ["--config", file]):
        assert f"24 samples of {url}" in here("evaluate", tiny_config.url, *named).out
    done = here("evaluate", tiny_config.url, "--stored-data", "--picture", tmp_path / "confusion.png")
    assert done.code == 0, done.err
    assert "prompted UAR" in done.out
    assert f"24 samples of {tiny_config.evaluation.url}" in done.out
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 100
    wrong = here("evaluate", tiny_config.url, "--step", "9")
    assert wrong.code == 1
    assert "no checkpoint of step 9; steps: 1" in wrong.err


def test_the_module_and_the_command_are_one_function() -> None:
    (registered,) = [each for each in app.registered_commands if each.name == "pretrain"]
    assert registered.callback is run.command


def commands(group: Any) -> Iterator[Any]:
    for each in group.commands.values():
        yield from commands(each) if hasattr(each, "commands") else [each]


def test_every_command_refuses_a_second_value_for_an_option() -> None:
    found = list(commands(typer.main.get_command(app)))
    assert {"pack", "pretrain", "prune"} <= {each.name for each in found}
    assert all(isinstance(each, Command) for each in found)
    for arguments in (["pack", "a", "b", "--global", "x", "--global", "y"], ["stop", "x", "--wait", "--no-wait"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert f"{arguments[-2 if 'stop' in arguments else -4]} is given 2 times" in done.stderr


def test_a_flag_and_an_option_that_takes_several_values_may_come_twice(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "global": "a", "more": "b", "other": "c", "x": 1, "y": 2}]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--further", "more", "--further", "other", "--label", "x", "--label", "y", "--debug", "--debug"]
    done = CliRunner().invoke(app, ["pack", str(table), str(tmp_path / "out"), *options])
    assert done.exit_code == 0
    (sample,) = Stream(url=str(tmp_path / "out"), global_batch=1, epochs=1, shuffle=False).read([0])
    assert {each.global_ for each in (sample.caption, *sample.further)} == {"a", "b", "c"}
    refused = CliRunner().invoke(app, ["pack", str(table), str(tmp_path / "no"), "--further", "mroe"])
    assert "there is no column 'mroe'" in refused.stderr


@pytest.mark.parametrize(
    "before",
    [
        (),
        ("checkpoints",),
        ("inspect", "faces"),
        ("checkpoints", "list", "run"),
    ],
)
def test_a_word_that_is_not_understood_is_repeated_without_its_secret(before: tuple[str, ...]) -> None:
    done = here(*before, "s3://AKIAEXAMPLE:Se/Cr3tPassw0rd@faces/train")
    assert done.code == 2
    assert "faces/train" in done.err.replace("\n", "")
    assert "Cr3tPassw0rd" not in done.err
    assert "s3://***@faces" in done.err
