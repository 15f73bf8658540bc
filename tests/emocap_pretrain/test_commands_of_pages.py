"""Tests that every command `emocap` on a page of the documentation exists, with the options that the page gives it."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pages import ROOT, pages, shown_on

from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import EvaluationConfig

TREE = typer.main.get_command(app)
PROGRAM = re.compile(r"(.*/)?emocap|emocap_pretrain\.cli")


def fault_in(words: list[str]) -> str:
    """Returns what is wrong with the words of a command line; empty if nothing is, or if it is another program."""
    start = next((number for number, word in enumerate(words) if PROGRAM.fullmatch(word)), None)
    if start is None:
        return ""
    # A pipe or a list of commands ends the arguments.
    end = next((number for number, word in enumerate(words) if number > start and word in {"|", "&&", ";", ">"}), None)
    command: Any = TREE
    rest = words[start + 1 : end]
    while (commands := getattr(command, "commands", None)) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in commands:
            return f"there is no command {name}"
        command = commands[name]
    known = {"--help", *(option for each in command.params for option in (*each.opts, *each.secondary_opts))}
    if command.context_settings.get("ignore_unknown_options"):
        return ""
    given = [word.partition("=")[0] for word in rest[: rest.index("--") if "--" in rest else None]]
    unknown = [word for word in given if re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in known]
    return f"{command.name} has no option {unknown[0]}" if unknown else ""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_exist(page: Path) -> None:
    faults = [f"line {each.line}: {each.text}: {fault}" for each in shown_on(page) if (fault := fault_in(each.words))]
    assert not faults, "\n".join(faults)


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    assert "no command fly" in fault_in(["emocap", "fly"])
    assert "no option --fast" in fault_in(["X=1", ".venv/bin/emocap", "pack", "a", "b", "--label", "x", "--fast"])
    assert "no command bake" in fault_in(["torchrun", "-m", "emocap_pretrain.cli", "import", "bake"])
    assert fault_in(["emocap", "restart", "--", "torchrun", "--anything"]) == ""


def test_the_settings_on_the_page_about_evaluation_are_all_options_of_the_command() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    _, _, rest = text.partition("\n## Settings\n")
    section, _, _ = rest.partition("\n## ")
    rows = [line.split("|")[1:3] for line in section.splitlines() if re.match(r"\| (`--|- \|)", line)]
    listed = {option for options, _ in rows for option in re.findall(r"`(--[a-z-]+)", options)}
    options = {option for each in TREE.commands["evaluate"].params for option in each.opts if option.startswith("--")}
    assert listed == options - {"--help"}
    keys = {key for _, cell in rows for key in re.findall(r"`evaluation\.(\w+)`", cell)}
    assert len(keys) > 10
    assert keys - set(EvaluationConfig.model_fields) == set()
