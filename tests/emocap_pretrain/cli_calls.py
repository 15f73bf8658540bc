"""Calls the command line in this process, as a user calls `emocap`."""

import json
import os
import subprocess
import sys
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


def torchrun(*words: object) -> str:
    """Runs a program on two ranks of torchrun, and returns what both print. An exit code above 0 fails the test.

    Args:
        words: The arguments of torchrun after its options: such as "-m", the name of a module, and its arguments.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, *map(str, words)], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
