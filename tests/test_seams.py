"""Tests that the parts of the product know only what they need: no whole `Config`, and no caption part by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

from emocap_pretrain.data.parts import PARTS

PACKAGE = Path(__file__).parents[1] / "emocap_pretrain"
# Code that opens, runs or stores a whole run. All other modules take plain values or their own settings type.
WHOLE_RUN = (
    "cli/",
    "config/",
    "dry_run/",
    "inference/opened.py",
    "interop/restore.py",
    "interop/settings.py",
    "run.py",
    "run_folder/folder.py",
    "training/build.py",
    "training/conclusion.py",
    "training/interim_evaluation.py",
    "training/loop.py",
    "training/run_tracker.py",
    "training/session.py",
)
# Code that handles the caption parts of every run, by iterating over them.
ANY_PART = ("checkpoint", "data/loader.py", "dry_run", "evaluation", "inference", "interop", "model", "training")


def _trees(*below: str) -> Iterator[tuple[str, ast.Module]]:
    """Yields each module of the package, or only those of these folders and files, by its path in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not below or any(name == each or name.startswith(f"{each}/") for each in below):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_only_code_that_handles_a_whole_run_imports_the_whole_config() -> None:
    found = {
        name
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "Config" for alias in node.names)
    }
    assert found
    beyond = sorted(name for name in found if not name.startswith(WHOLE_RUN))
    assert not beyond, f"pass these modules the values or the section that they need: {beyond}"


def test_code_that_handles_every_part_names_none() -> None:
    parts = {part.name for part in PARTS}
    named = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in _trees(*ANY_PART)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in parts
    ]
    assert not named, f"iterate over the parts instead (docs/extend/part.md): {named}"
