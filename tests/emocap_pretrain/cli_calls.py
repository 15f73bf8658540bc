"""Calls the command line in this process, as a user calls `emocap`."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from emocap_pretrain.cli.app import app


def called(*words: object) -> Result:
    """Calls `emocap` with these words, and returns its exit code and output. Any other error fails the test."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def printed(*words: object) -> dict[str, Any]:
    """Returns the JSON value that `emocap` prints with these words and `--json`."""
    done = called(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)
