import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from emocap_shards.inspect import verify
from emocap_shards.manifest import read_manifest
from PIL import Image
from pretrain_fakes import stand_alone

from emocap_pretrain import run
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.runtime import Rank
from emocap_pretrain.session import Progress, open_session
from emocap_pretrain.world import World


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def emocap(*arguments: str | Path) -> Done:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "emocap_pretrain.cli", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=env)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three captioned images as a .jsonl table."""
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
    assert emocap("pack", table, out, "--label", "emotion").code == 0
    return out


def test_synth_renders_two_datasets_and_keeps_those_that_stand(tmp_path: Path) -> None:
    command = ("synth", tmp_path / "faces", "--train", "6", "--test", "3", "--pixels", "32", "--samples-per-shard", "4")
    done = emocap(*command)
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "faces" / "train").samples == 6
    assert read_manifest(tmp_path / "faces" / "test").samples == 3
    assert verify(tmp_path / "faces" / "train") == []
    before = read_manifest(tmp_path / "faces" / "train").digest
    again = emocap(*command)
    assert again.code == 0
    assert again.out.count("there already") == 2
    assert read_manifest(tmp_path / "faces" / "train").digest == before
    other = emocap(*command[:3], "5", *command[4:])
    assert other.code != 0
    assert "6 samples, not 5" in other.err


def test_pack_writes_what_the_table_says(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert manifest.samples == 3
    assert verify(packed) == []


def test_inspect_tells_what_is_there_and_that_it_is_whole(packed: Path) -> None:
    done = emocap("inspect", packed, "--verify")
    assert done.code == 0, done.err
    assert "joy 2, fear 1" in done.out
    assert "Every digest holds." in done.out


def test_inspect_verify_finds_a_flipped_byte_and_ends_with_1(packed: Path) -> None:
    (shard,) = packed.glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    done = emocap("inspect", packed, "--verify")
    assert done.code == 1
    assert shard.name in done.out
    assert "Traceback" not in done.err


def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.yaml"
    done = emocap("pretrain", missing)
    assert done.code == 2
    assert done.err.strip().count("\n") == 0
    assert done.err.startswith("error: ")
    assert str(missing) in done.err


@pytest.mark.parametrize("command", ["pack", "inspect", "evaluate"])
def test_every_command_says_what_is_missing_in_one_line(command: str, tmp_path: Path) -> None:
    arguments = (tmp_path / "nothing.csv", tmp_path / "out") if command == "pack" else (tmp_path / "nothing",)
    done = emocap(command, *arguments)
    assert done.code in {1, 2}
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "nothing") in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = emocap("pretrain", tmp_path / "nothing.yaml", "--debug")
    assert done.code not in {0, 2}
    assert "Traceback" in done.err
    assert "ConfigError" in done.err


def test_a_wrong_value_names_its_place_before_anything_starts(tiny_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    done = emocap("pretrain", path, "optimizer.lr=-1")
    assert done.code == 2
    assert "optimizer.lr" in done.err
    assert not Path(tiny_config.url).exists()


def test_a_dry_run_prints_config_and_plan_and_starts_nothing(tiny_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    done = emocap("pretrain", path, "steps=77", "--dry-run")
    assert done.code == 0, done.err
    assert "steps: 77" in done.out
    assert re.search(r"global 8 = 1 ranks x 8", done.out)
    assert not Path(tiny_config.url).exists()


@pytest.mark.parametrize("command", [(), ("synth",), ("pack",), ("inspect",), ("pretrain",), ("evaluate",)])
def test_help_imports_no_framework(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom emocap_pretrain.cli.app import app\n"
        f"try:\n    app([*{command!r}, '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_evaluate_prints_the_result_of_a_checkpoint_and_draws_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_alone()
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = open_session(tiny_config, World(Rank(), "cpu", None))
    batch, cursor, _ = next(session.batches)
    session.engine.train(batch)
    session.save(cursor, Progress())
    session.tracker.finish("FINISHED")
    done = emocap("evaluate", tiny_config.url, "--picture", tmp_path / "confusion.png")
    assert done.code == 0, done.err
    assert "zero-shot UAR" in done.out
    assert f"24 samples of {tiny_config.evaluation.url}" in done.out
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 100
    wrong = emocap("evaluate", tiny_config.url, "--step", "9")
    assert wrong.code == 1
    assert "no checkpoint of step 9; steps: 1" in wrong.err


def test_the_module_and_the_command_are_one_function() -> None:
    (registered,) = [each for each in app.registered_commands if each.name == "pretrain"]
    assert registered.callback is run.command
