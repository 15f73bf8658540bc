"""Tests names: one name means one thing, and the name of a settings type ends in `Config`."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("emocap_pretrain", "kernels/emocap_kernels", "shards/emocap_shards", "cluster/emocap_cluster")


def _classes(folders: Sequence[str]) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yields each public class at the top of a module, with the file that defines it."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield path.relative_to(ROOT).as_posix(), node


@pytest.mark.parametrize("folders", [PACKAGES, ("benchmarks",)], ids=["product", "benchmarks"])
def test_no_class_name_is_defined_twice(folders: Sequence[str]) -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path, node in _classes(folders):
        found[node.name].append(path)
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert not twice, f"give one of them another name: {twice}"


def test_the_name_of_a_settings_type_ends_in_config() -> None:
    """A settings type is a pydantic model: a subclass of `Section`, or of another settings type.

    The parts of a benchmark's card are subclasses of `CardSection`, and no settings.
    """
    for path, node in _classes(PACKAGES):
        bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        if node.name not in {"Section", "CardSection"} and any(
            base in {"Section", "BaseModel"} or base.endswith("Config") for base in bases
        ):
            assert node.name.endswith("Config"), f"{path}: {node.name} is a settings type: let its name end in Config"
