"""Tests what `emocap inspect` prints in 80 columns, and the page that it writes."""

import io
import json
from pathlib import Path

import pytest
import yaml
from emocap_shards.inspecting.summary import summarise
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from emocap_pretrain.cli import inspect, inspect_report
from emocap_pretrain.cli.app import app
from emocap_pretrain.cli.tables import grid
from emocap_pretrain.config.schema import Config


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    rows = [Record(f"k{number}", image.getvalue(), "png", Caption("Glad.", (), ""), {}) for number in range(3)]
    folder = tmp_path / "packed"
    write_shards(rows, folder)
    return folder


def refusal(packed: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the error for a page that cannot be written; asserts that no sample is read before."""

    def too_soon(*_: object) -> None:
        pytest.fail("it looked first")

    monkeypatch.setattr(inspect, "_summary", too_soon)
    done = CliRunner().invoke(app, ["inspect", str(packed), "--html", str(page)])
    assert done.exit_code == 2
    return done.stderr


def test_a_title_is_one_line_also_above_a_narrow_table(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_report, "console", Console(width=80, highlight=False, soft_wrap=True))
    inspect_report.show(summarise(packed))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "shard-000000.tar k1" in lines
    assert max(map(len, lines)) <= max(80, len(str(packed)))
    Console(width=80).print(grid("A title that is wider", ("a", "b"), [("x", "1")]))
    assert capsys.readouterr().out.splitlines()[0].rstrip() == "A title that is wider"


def test_one_sample_is_not_counted_in_the_plural_by_any_command(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.stderr
        return done.stdout

    made = said("synth", str(tmp_path), "--train", "1", "--test", "0", "--pixels", "16")
    again = said("synth", str(tmp_path), "--train", "1", "--test", "0", "--pixels", "16")
    faces = str(tmp_path / "train")
    unpacked = said("unpack", faces, str(tmp_path / "pairs"))
    packed = said("pack", str(tmp_path / "pairs"), str(tmp_path / "packed"))
    looked = said("inspect", faces)
    assert "train: 1 sample in 1 shard, " in made
    assert "train: a dataset of 1 sample exists already." in again
    assert unpacked.endswith("pairs: 1 sample.\n")
    assert "packed: 1 sample in 1 shard, " in packed
    assert "1 sample in 1 shard, " in looked
    assert "a shard has 1 sample, " in looked
    assert "What follows comes from 1 sample, every one of them" in looked
    assert "Intact: 1 sample in 1 shard, " in said("verify", faces)


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "it cannot be written" in refusal(packed, tmp_path / "no" / "page.html", monkeypatch)
    assert "not a file that you may write" in refusal(packed, packed, monkeypatch)


def test_a_page_that_fails_keeps_the_earlier_page(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("older")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        done = CliRunner().invoke(app, ["inspect", str(packed), "--html", str(page)])
    assert (done.exit_code, page.read_text()) == (2, "older")
    assert "no space left" in done.stderr
    assert CliRunner().invoke(app, ["inspect", str(packed), "--html", str(page)]).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "page.html"]


def test_a_page_is_written_through_a_link(packed: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.touch()
    link.symlink_to(target)
    assert CliRunner().invoke(app, ["inspect", str(packed), "--html", str(link)]).exit_code == 0
    assert link.is_symlink()
    assert target.read_text().startswith("<!doctype html>")


def test_with_the_config_of_a_run_it_says_which_share_of_the_captions_the_run_cuts(
    tiny_config: Config, faces: str, tmp_path: Path
) -> None:
    file = tmp_path / "cfg.yaml"
    file.write_text(yaml.safe_dump(tiny_config.stored()), encoding="utf-8")
    done = CliRunner().invoke(app, ["inspect", faces, "--config", str(file)])
    assert "Texts that tiny cuts, of the first 24 samples: global " in done.stdout
    cut = json.loads(CliRunner().invoke(app, ["inspect", faces, "--config", str(file), "--json"]).stdout)["cut"]
    assert cut["samples"] == 24
    assert [(part["kind"], part["limit"]) for part in cut["parts"]] == [("global", 16), ("summary", 24), ("local", 16)]
