"""One name means one thing: no public class name is defined twice in the product."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("emocap_pretrain", "kernels/emocap_kernels", "shards/emocap_shards", "cluster/emocap_cluster")


def _defined() -> dict[str, list[str]]:
    """Returns the files that define each public class name, for names with more than one file."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path.relative_to(ROOT).as_posix())
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_class_name_is_defined_twice():
    twice = _defined()
    assert not twice, f"give one of them another name: {twice}"
