"""Draws docs/pictures/architecture.svg from the import contracts in pyproject.toml.

Run it as `python docs/pictures/architecture.py` after a change of the contracts.

Each package is a box with the layers of its contract, the highest first. A layer imports only from layers below it. A
framework is named in the layers that may import it. A test compares the committed picture with the contracts.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_suffix(".svg")
TOP, BELOW = "emocap_pretrain", ("emocap_cluster", "emocap_kernels", "emocap_shards")
WIDTH, GAP, ROW, HEAD, LABEL = 1160, 12, 30, 34, 58
LETTER = 8  # Width of a letter, with some air.
STYLE = """
text { font: 13px sans-serif; fill: #1b2733 }
.package { fill: #f2f5f9; stroke: #8fa3b8 }
.layer { fill: #ffffff; stroke: #b9c6d4 }
.title { font-weight: bold; font-size: 15px }
.door { fill: #8a4b08; font-size: 11px }
.arrow { stroke: #5b6f84; stroke-width: 1.5; fill: none; marker-end: url(#head) }
.note { fill: #5b6f84; font-size: 12px }
"""

Layers = list[list[str]]


@dataclass(frozen=True, slots=True)
class Contracts:
    """The contracts that the picture shows.

    Attributes:
        layers: For each package its layers, the highest first; a layer has one module or several.
        doors: For each module such as `emocap_pretrain.training` the foreign packages that it alone may import.
        meets: For each pair of our packages the modules of the first that may import the second, if only some may.
    """

    layers: Mapping[str, Layers]
    doors: Mapping[str, Sequence[str]]
    meets: Mapping[tuple[str, str], Sequence[str]]

    @classmethod
    def read(cls, path: Path) -> "Contracts":
        settings = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["importlinter"]
        ours = settings["root_packages"]
        layers = {
            each["containers"][0]: [layer.split(" | ") for layer in each["layers"]]
            for each in settings["contracts"]
            if each["type"] == "layers" and each.get("exhaustive")
        }
        doors, meets = defaultdict[str, list[str]](list), defaultdict[tuple[str, str], list[str]](list)
        for source, target in _allowed(settings["contracts"]):
            package, module = source.split(".")[:2]
            if target.split(".")[0] in ours:
                found, name = meets[package, target.split(".")[0]], module
            else:
                found, name = doors[f"{package}.{module}"], target
            if name not in found:
                found.append(name)
        return cls(layers, doors, meets)


def _allowed(contracts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields the imports that a contract allows although it forbids the package to all others."""
    for contract in contracts:
        sources = contract.get("source_modules", ())
        if contract["type"] == "forbidden" and TOP in sources:
            for line in contract.get("ignore_imports", ()):
                source, target = line.split(" -> ")
                yield source, target


def svg(contracts: Contracts) -> str:
    """Returns the picture."""
    column = (WIDTH - 2 * GAP * (len(BELOW) - 1)) // len(BELOW)
    upper = _height(contracts.layers[TOP], WIDTH)
    lower_y = upper + LABEL
    height = lower_y + max(_height(contracts.layers[name], column) for name in BELOW)
    parts = [*_package(contracts, TOP, 0, 0, WIDTH)]
    for number, name in enumerate(BELOW):
        x = number * (column + 2 * GAP)
        parts += _package(contracts, name, x, lower_y, column)
        parts += _arrow(x + column // 2, upper, ", ".join(contracts.meets.get((TOP, name), ())) or "any layer")
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {WIDTH + 2} {height + 2}" role="img">\n'
        "<title>The packages and their layers; imports go downwards only</title>\n"
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="head" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5b6f84"/></marker></defs>\n'
        f'<rect x="-1" y="-1" width="{WIDTH + 2}" height="{height + 2}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _height(layers: Layers, width: int) -> int:
    rows = sum(len(_rows(layer, width - 2 * GAP)) for layer in layers)
    return HEAD + rows * (ROW + 2) + len(layers) * GAP // 2 + GAP // 2


def _rows(layer: Sequence[str], width: int) -> list[Sequence[str]]:
    """Returns the modules of a layer in as many rows of about equal length as their names need."""
    count = -(-sum(len(module) + 2 for module in layer) * LETTER // width)
    size = -(-len(layer) // count)
    return [layer[start : start + size] for start in range(0, len(layer), size)]


def _package(contracts: Contracts, name: str, x: int, y: int, width: int) -> Iterator[str]:
    layers = contracts.layers[name]
    yield f'<rect class="package" x="{x}" y="{y}" width="{width}" height="{_height(layers, width)}" rx="6"/>'
    yield f'<text class="title" x="{x + GAP}" y="{y + 22}">{name}</text>'
    top = y + HEAD
    for layer in layers:
        for row in _rows(layer, width - 2 * GAP):
            yield from _row(contracts, name, row, (x + GAP, top, width - 2 * GAP))
            top += ROW + 2
        top += GAP // 2


def _row(contracts: Contracts, package: str, row: Sequence[str], place: tuple[int, int, int]) -> Iterator[str]:
    """Yields one box for each module, side by side; longer names get more room."""
    x, y, width = place
    total = sum(len(module) + 4 for module in row)
    left = float(x)
    for module in row:
        share = width * (len(module) + 4) / total
        doors = ", ".join(contracts.doors.get(f"{package}.{module}", ()))
        yield f'<rect class="layer" x="{left:.0f}" y="{y}" width="{share - 2:.0f}" height="{ROW}" rx="4"/>'
        middle = f'x="{left + share / 2 - 1:.0f}" text-anchor="middle"'
        yield f'<text {middle} y="{y + (15 if doors else 20)}">{escape(module)}</text>'
        if doors:
            yield f'<text class="door" {middle} y="{y + 27}">{escape(doors)}</text>'
        left += share


def _arrow(x: int, y: int, note: str) -> Iterator[str]:
    yield f'<path class="arrow" d="M{x},{y + 4} L{x},{y + LABEL - 4}"/>'
    yield f'<text class="note" x="{x + 10}" y="{y + LABEL // 2 + 4}">imported by {escape(note)}</text>'


def main() -> None:
    PICTURE.write_text(svg(Contracts.read(ROOT / "pyproject.toml")), encoding="utf-8")


if __name__ == "__main__":
    main()
