import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import read_manifest
from PIL import Image

from emocap_pretrain.cli.app import app


@dataclass(frozen=True)
class Done:
    """Holds the exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def emocap(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Returns a function that runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> Done:
        with pytest.raises(SystemExit) as end:
            app([str(argument) for argument in arguments])
        return Done(int(end.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Writes a table of twenty captioned images with unusual names of columns and two bad rows."""
    for number in range(20):
        Image.effect_noise((24, 20), 60).convert("RGB").save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,Face {number}.,joy" for number in range(20)]
    rows[4], rows[9] = "../../etc/passwd,x,joy", "19.png,,joy"
    path = tmp_path / "faces.csv"
    path.write_text("\n".join(["file,text,mood", *rows]))
    return path


COLUMNS = ("--image", "file", "--global", "text", "--label", "mood")


def test_pack_unpack_and_reshard_print_one_line_of_result(
    emocap: Callable[..., Done], table: Path, tmp_path: Path
) -> None:
    options = ("--skip-bad", "2", "--format", "webp", "--longest-px", "12", "--shard-samples", "8", "--find-duplicates")
    packed = emocap("pack", table, tmp_path / "a", *COLUMNS, *options, "--processes", "2")
    assert packed.code == 0, packed.err
    assert packed.out == f"{tmp_path}/a: 18 samples in 3 shards, 0.0 MB, 2 bad rows in skipped.json.\n"
    assert verify(tmp_path / "a").whole

    unpacked = emocap("unpack", tmp_path / "a", tmp_path / "folder")
    assert unpacked.out == f"{tmp_path}/folder: 18 samples.\n", unpacked.err
    assert {path.suffix for path in (tmp_path / "folder").iterdir()} == {".webp", ".json", ".txt"}
    again = emocap("pack", tmp_path / "folder", tmp_path / "b", "--shard-samples", "8", "--processes", "1")
    assert again.code == 0, again.err
    assert read_manifest(tmp_path / "b") == read_manifest(tmp_path / "a")

    options = ("--shard-bytes", "10kB", "--shuffle", "7", "--number-keys")
    resharded = emocap("reshard", tmp_path / "a", tmp_path / "b", tmp_path / "c", *options)
    assert resharded.code == 0, resharded.err
    assert "36 samples in " in resharded.out
    assert max(shard.bytes for shard in read_manifest(tmp_path / "c").shards) <= 10_000


def test_a_bad_row_is_one_line_with_its_place(emocap: Callable[..., Done], table: Path, tmp_path: Path) -> None:
    done = emocap("pack", table, tmp_path / "a", *COLUMNS)
    assert done.code == 1
    line = done.err.strip().splitlines()[-1]
    assert line.startswith(f"error: {table}:6: the file '../../etc/passwd' is refused: it leads out of {tmp_path};")
    assert line.endswith("or allow a number of them with --skip-bad.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("pack", "nowhere", "out"), "nowhere is not a source; give a folder of image + .json pairs"),
        (("pack", "x.tar", "out"), "does not exist; correct its name"),
        (("unpack", "nowhere", "out"), "has no manifest.json"),
        (("reshard", "only-one"), "name the new dataset after the old ones"),
        (("pack", ".", "out"), "out lies in the source .: choose a place for the dataset outside of the source"),
        (("pack", ".", "out", "--format", "gif"), "image format 'gif' is not one of jpg, png, webp"),
        (("reshard", "a", "b", "--shard-bytes", "many"), "'many' is not a size; write it like 256MB or 1GiB"),
    ],
)
def test_errors_are_printed_without_a_traceback(
    emocap: Callable[..., Done], arguments: tuple[str, ...], told: str
) -> None:
    done = emocap(*arguments)
    assert done.code != 0
    assert told in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err


# Presses Ctrl-C on the pack itself and its workers as soon as the third shard is in the journal.
INTERRUPTED = """
import os, signal, sys
from emocap_shards.writing.journal import Journal

signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell lets background jobs ignore it.

def put(self, number, entry, put=Journal.put):
    put(self, number, entry)
    if number == 2:
        os.killpg(0, signal.SIGINT)

Journal.put = put
from emocap_pretrain.cli.app import main
main()
"""


def test_ctrl_c_ends_a_pack_and_its_workers_and_the_same_command_resumes(
    emocap: Callable[..., Done], tmp_path: Path
) -> None:
    for number in range(300):
        Image.new("RGB", (200, 200), (number % 256, 0, 0)).save(tmp_path / f"{number:04d}.png")
    rows = "\n".join(f"{number:04d}.png,Face {number}." for number in range(300))
    (tmp_path / "t.csv").write_text(f"image,global\n{rows}\n")
    arguments = ("pack", tmp_path / "t.csv", tmp_path / "out", "--shard-samples", "10", "--format", "png")
    command = [sys.executable, "-c", INTERRUPTED, *map(str, arguments), "--processes", "2"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said.decode()
    assert b"Traceback" not in said
    done = emocap(*arguments, "--processes", "1")
    assert done.code == 0, done.err
    assert "300 samples in 30 shards" in done.out
    assert " of them from an earlier run" in done.out


def test_a_pack_that_ends_while_its_workers_start_prints_its_error_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,global\n" + "\n".join(f"{number}.png,A face." for number in range(20)))
    command = [sys.executable, "-m", "emocap_pretrain.cli", "pack", "t.csv", "out", "--processes", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: t.csv:2: ")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Writes a list of two splits, whose images have other names on the disk, and returns its path."""
    (tmp_path / "aligned").mkdir()
    names = ("train_0", "test_0", "train_1")
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "aligned" / f"{name}_aligned.png")
    (tmp_path / "list.txt").write_text("".join(f"{name}.png {number}\n" for number, name in enumerate(names)))
    return tmp_path / "list.txt"


LIST = ("--columns", "image, emotion", "--label", "emotion", "--image-name", "{stem}_aligned.png")


def test_a_list_of_a_benchmark_is_packed_with_the_names_of_its_classes(
    emocap: Callable[..., Done], lists: Path, tmp_path: Path
) -> None:
    options = (
        "--image-root",
        tmp_path / "aligned",
        "--only-keys",
        "train_*",
        "--label-names",
        "0=joy, 1=anger, 2=fear",
    )
    done = emocap("pack", lists, tmp_path / "a", *LIST, *options, "--delimiter", "space", "--processes", "1")
    assert done.code == 0, done.err
    assert done.out == (
        f"{tmp_path}/a: 2 samples in 1 shard, 0.0 MB, all without a caption, left out 1 whose key is not train_*.\n"
    )
    shown = emocap("inspect", tmp_path / "a")
    assert "all of the samples have labels and no caption" in shown.out
    assert "Label emotion: 2 values" in shown.out
    assert "Repeated texts" not in shown.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--delimiter", "::"), "delimiter '::' is neither one character nor one of comma, tab"),
        (("--encoding", "utf-9"), "there is no encoding 'utf-9'"),
        (("--image-name", "x.jpg"), "a name has {stem} or {name}"),
        (("--captions", "some"), "'some' is not one of"),
        (("--label-names", "1=joy,1=fear"), "does not name each value once"),
        (("--encoding", "gbk", "--encoding", "gb18030"), "--encoding is given 2 times"),
    ],
)
def test_options_of_tables_that_cannot_be_are_refused(
    emocap: Callable[..., Done], lists: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = emocap("pack", lists, tmp_path / "a", "--label", "emotion", *options)
    assert done.code != 0
    assert told in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "a").exists()


def test_a_note_says_that_annotations_win_over_folders(emocap: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "in/joy").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "in/joy/a.png")
    (tmp_path / "in/joy/a.json").write_text('{"labels": {"emotion": "calm"}}')
    done = emocap("pack", tmp_path / "in", tmp_path / "out", "--label", "emotion", "--processes", "1")
    assert "the labels are those of the .json files" in " ".join(done.out.split())


def test_a_folder_is_divided_into_splits_and_the_same_command_continues(
    emocap: Callable[..., Done], tmp_path: Path
) -> None:
    for name in ("joy", "anger"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "faces" / name / f"{number}.png")
    words = ("pack", tmp_path / "faces", tmp_path / "out", "--label", "emotion", "--processes", "1")
    words = (*words, "--splits", "train=8,test=2")
    assert emocap(*words).code == 0
    sizes = [read_manifest(str(tmp_path / "out" / split)).samples for split in ("train", "test")]
    assert sum(sizes) == 80
    assert all(sizes)
    before = (tmp_path / "out/train/manifest.json").read_bytes()
    (tmp_path / "out/test/manifest.json").unlink()
    for shard in (tmp_path / "out/test").glob("shard-*"):
        shard.unlink()
    done = emocap(*words)
    assert (done.code, done.out.splitlines()[1]) == (0, f"{tmp_path}/out/train exists and is kept.")
    assert (tmp_path / "out/train/manifest.json").read_bytes() == before
    done = emocap(*words)
    assert (done.code, "holds these splits already" in done.err) == (1, True)
    (tmp_path / "removed.txt").write_text("joy_0\n\n anger_7 \nnobody\n")
    packed = emocap(
        "pack", tmp_path / "faces", tmp_path / "less", *words[3:7], "--without-keys", tmp_path / "removed.txt"
    )
    assert "78 samples" in packed.out
    assert "left out 2 whose key is to be left out" in packed.out
    assert "lists 1 key that no row has: 'nobody'." in " ".join(packed.out.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--splits", "train=1"), "does not name two or more splits"),
        (("--splits", "train=1,../x=1"), "does not name two or more splits"),
        (("--splits", "train=1,test=0"), "has a share that is not a number above 0"),
        (("--splits", "train=1,test=nan"), "has a share that is not a number above 0"),
        (("--split-by", "person"), "give --splits too"),
        (("--without-keys", "absent.txt"), "the file cannot be read"),
    ],
)
def test_splits_that_cannot_be_are_refused(
    emocap: Callable[..., Done], lists: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = emocap("pack", lists, tmp_path / "a", *LIST, "--image-root", tmp_path / "aligned", *options)
    assert done.code == 2
    assert told in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "a").exists()
