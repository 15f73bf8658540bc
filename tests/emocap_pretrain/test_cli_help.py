"""Tests that the help of every command is readable on a terminal of 80 columns."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer
from typer.core import TyperArgument, TyperOption
from typer.testing import CliRunner

from emocap_pretrain.cli.app import app

COLUMNS = 80
MARGIN = 2  # Typer leaves a column free at each side.


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[Any]:
    yield pytest.param(command, words, id=" ".join(("emocap", *words)))
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


EVERY = list(commands(typer.main.get_command(app)))


def shown(words: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(COLUMNS), "TERM": "dumb"})
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize(("command", "words"), EVERY)
def test_the_help_of_a_command_fits_into_80_columns(command: Any, words: tuple[str, ...]) -> None:
    output = shown(words)
    lines = [line.rstrip() for line in output.splitlines()]
    assert max(map(len, lines)) <= COLUMNS
    assert "…" not in output
    for paragraph in command.help.split("\n\n"):
        wanted = textwrap.wrap(paragraph, COLUMNS - MARGIN, break_long_words=False, break_on_hyphens=False)
        first = lines.index(f" {wanted[0]}")
        assert lines[first : first + len(wanted)] == [f" {line}" for line in wanted]
    for param in command.params:
        if isinstance(param, TyperOption) and not param.hidden:
            (line,) = (line for line in lines if re.match(rf"│ [* ]{{0,3}}{param.opts[0]} ", line))
            assert f" {param.display_type_rich(typer.Context(command))} " in line


@pytest.mark.parametrize(("command", "words"), EVERY)
def test_every_text_of_the_help_ends_with_a_full_stop_and_names_hidden_choices(
    command: Any, words: tuple[str, ...]
) -> None:
    assert command.help.endswith(".")
    for param in command.params:
        if isinstance(param, TyperArgument | TyperOption) and not getattr(param, "hidden", False):
            assert (param.help or "").endswith("."), (words, param.name)
            # A metavar takes the place of the choices, so the text must name them.
            choices = get_args(param.type_descriptor.annotation)
            texts = [each for each in choices if isinstance(each, str)]
            assert param.metavar is None or [each for each in texts if each not in param.help] == []
