"""One name means one thing: no public class name is defined twice in the product.

`TWICE` lists the names that still are, from before this rule. It can only shrink.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("emocap_pretrain", "kernels/emocap_kernels", "shards/emocap_shards", "cluster/emocap_cluster")
TWICE = {
    "Row",
}


def _defined() -> dict[str, list[str]]:
    """Returns the files that define each public class name, for names with more than one file."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path.relative_to(ROOT).as_posix())
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_further_class_name_is_defined_twice():
    new = {name: paths for name, paths in _defined().items() if name not in TWICE}
    assert not new, f"give one of them another name: {new}"


def test_names_that_are_defined_once_are_not_listed():
    once = TWICE - _defined().keys()
    assert not once, f"take these names out of TWICE: {sorted(once)}"
