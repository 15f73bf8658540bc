"""Tests that the output of a process contains no secrets and no control characters."""

import io
import json
import subprocess
import sys

import pytest
from rich.table import Table

from emocap_pretrain import terminal
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import conceal, shown, shown_tree

SECRET = "wJalr/XUtn+FEMIK7MDENG"
EVIL = "a\x1b[31mred\x1b]8;;http://stranger\x1b\\link\r\u202eturned\x07 [bold]b[/bold] :smile:"
TOLD = "a\ufffd[31mred\ufffd]8;;http://stranger\ufffd\\link \ufffdturned\ufffd [bold]b[/bold] :smile:"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def test_foreign_text_is_shown_as_text() -> None:
    assert shown(f"{EVIL}\nsecond line {SECRET}") == f"{TOLD}\nsecond line ***"


def test_the_console_shows_texts_and_cells_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = terminal.Terminal(file=out, width=30, highlight=False, soft_wrap=True)
    console.print(f"{EVIL} {SECRET}")
    assert out.getvalue() == f"{TOLD} ***\n"
    table = Table(title=f"{EVIL}")
    table.add_row("[red]", SECRET, EVIL)  # Narrow: a secret that is broken into lines would not be found.
    console.print(table)
    assert "[red]" in out.getvalue()
    assert not {"\x1b", "\r", "\u202e"} & set(out.getvalue())
    assert not [piece for piece in (SECRET[:8], SECRET[8:16]) if piece in out.getvalue()]


def test_json_of_the_commands_holds_no_secret_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say_json({"url": f"s3://KEY:{SECRET}@faces", "texts": [EVIL, "\u00e4", 3, None], "n\u202e": True})
    (line,) = capsys.readouterr().out.splitlines()
    assert "\u202e" not in line
    assert json.loads(line) == {"url": "s3://***@faces", "texts": [EVIL, "\u00e4", 3, None], "n\u202e": True}


def test_a_tree_is_masked_value_by_value() -> None:
    tree = {"a": [f"x {SECRET}", 1, None], SECRET: {"token": "short"}}
    assert shown_tree(tree) == {"a": ["x ***", 1, None], "***": {"token": "short"}}


def test_an_error_and_its_causes_are_masked_in_place() -> None:
    inner = ValueError(f"s3://KEY:{SECRET}@faces", 3)
    outer = RuntimeError(f"failed with {SECRET}")
    outer.__cause__, inner.__context__ = inner, outer
    conceal(outer)
    assert (str(outer), inner.args) == ("failed with ***", ("s3://***@faces", 3))


def test_an_error_of_a_command_is_one_masked_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), terminal.errors_as_lines(debug=False):
        raise ConfigError(f"override url=s3://KEY:SE/CRET@faces/{EVIL}: no")
    assert "CRET" not in (told := capsys.readouterr().err)
    assert told.startswith("error: override url=s3://***@faces/a\ufffd[31mred")


PROCESS = """
import logging, sys, threading
from emocap_pretrain.logs import guard_tracebacks, show_logs
guard_tracebacks()
show_logs()
secret, evil = sys.argv[1:]
other = logging.getLogger("a.library")
other.addHandler(logging.StreamHandler(sys.stdout))
other.propagate = False
other.warning("library %s", secret)
from huggingface_hub.utils import _http
_http.logger.warning("Retrying in 1s [Retry 1/5].")
logging.getLogger("emocap_pretrain.x").info("ours %s %s\\nnot a line of its own", secret, evil)
try:
    raise ValueError(secret)
except ValueError:
    logging.getLogger("emocap_pretrain.x").exception("caught")
def fails():
    raise ValueError("in a thread: " + secret)
thread = threading.Thread(target=fails, name="uploads")
thread.start()
thread.join()
raise RuntimeError("at the end: " + secret)
"""


def test_logs_of_all_libraries_and_tracebacks_are_masked() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS, SECRET, EVIL], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert done.stdout == "library ***\n"
    assert "Retrying" not in done.stderr  # The client of the hub repeats itself without a network.
    assert f"ours *** {TOLD}\n  not a line of its own\n" in done.stderr
    for line in ("ValueError: ***", "Exception in uploads:", "ValueError: in a thread: ***", "at the end: ***"):
        assert line in done.stderr
