"""Defines `emocap benchmarks`: lists the benchmarks, shows what is known about one, and checks a copy of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import FAILED, Command, Group, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from emocap_pretrain.benchmarks.card import Card
    from emocap_pretrain.benchmarks.layouts import Layout
    from emocap_pretrain.benchmarks.sources import FactSource

app = typer.Typer(cls=Group, help="List the benchmarks of facial emotion, and check your copies.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a benchmark (see emocap benchmarks list).")]
_SIGNS = {"equal": "ok", "different": "DIFFERENT", "unchecked": "unchecked"}
_UNCHECKED = "[unchecked]"


@app.command("list", cls=Command)
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, debug: Debug = False
) -> None:
    """List all benchmarks."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.benchmarks.catalogue import card, names

        cards = [card(name) for name in names()]
        if as_json:
            say_json(
                [
                    {"name": each.name, "title": each.title, "media": each.media, "target": each.target.kind}
                    for each in cards
                ]
            )
            return
        rows = [(each.name, each.media, each.target.kind, each.title) for each in cards]
        console.print(tables.grid("Benchmarks", ("name", "items", "target", "title"), rows, left=4))


@app.command("show", cls=Command)
def show_command(
    name: Name, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, debug: Debug = False
) -> None:
    """Show the card of a benchmark: classes, splits, layouts, terms, known mistakes, and where each fact was read."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.benchmarks.catalogue import card

        found = card(name)
        if as_json:
            say_json(found.model_dump(mode="json"))
            return
        for section in _sections(found):
            console.print(section)
            console.print()


@app.command("check", cls=Command)
def check_command(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Folder with your copy.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ", help="Landmarks of its images (`emocap landmarks`), to tell how faces are cut out."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Compare a copy with the card. Exit codes: 0 nothing differs, 1 something differs, 2 no layout fits."""
    with errors_as_lines(debug=debug):
        from pydantic_core import to_jsonable_python

        from emocap_pretrain.benchmarks.catalogue import card
        from emocap_pretrain.benchmarks.check import check

        checked = check(card(name), path, landmarks=landmarks)
        if as_json:
            say_json({**to_jsonable_python(checked), "is_right": checked.is_right})
        else:
            rows = [
                (split.name, _SIGNS[finding.verdict], finding.text)
                for split in checked.splits
                for finding in split.findings
            ]
            if checked.alignment:
                rows.append(("all", _SIGNS[checked.alignment.verdict], checked.alignment.text))
            left_out = [
                (split.name, f"{count:,}", kind)
                for split in checked.splits
                for kind, (count, _) in split.problems.items()
                if kind.startswith("left out")
            ]
            console.print(tables.grid(f"{name}: {checked.layout}", ("split", "verdict", "what"), rows, left=3))
            if left_out:
                console.print(tables.grid("Left out on purpose", ("split", "items", "what"), left_out, left=1))
        raise typer.Exit(0 if checked.is_right else FAILED)


class _Sources:
    """Numbers the sources of a card in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        self._are_all_known = True

    def mark(self, source: "FactSource") -> str:
        """Returns the number of a source in brackets, or "[unchecked]" if the source is unknown."""
        if source == "unknown":
            self._are_all_known = False
            return _UNCHECKED
        return self._numbers.setdefault(str(source), f"[{len(self._numbers) + 1}]")

    def rows(self) -> list[tuple[str, str]]:
        """Returns the marks that were given, each with its source."""
        rows = [(number, source) for source, number in self._numbers.items()]
        return rows if self._are_all_known else [*rows, (_UNCHECKED, "no source was found for this fact")]


def _sections(card: "Card") -> Iterator["RenderableType"]:
    sources = _Sources()
    yield tables.table(card.title, _about(card, sources))
    yield tables.grid("Splits", ("split", "source", "items"), _splits(card, sources), left=3)
    layouts = [(each.about, sources.mark(each.source), _codes_mark(each, sources)) for each in card.layouts]
    yield tables.grid("Layouts of copies", ("layout", "source", "codes of classes"), layouts, left=3)
    if card.traps:
        traps = [(each.text, sources.mark(each.source)) for each in card.traps]
        yield tables.grid("Known mistakes", ("what", "source"), traps, left=2)
    if card.published:
        scores = [
            (each.model, each.score, each.value_text(), each.protocol, sources.mark(each.source))
            for each in card.published
        ]
        yield tables.grid("Published scores", ("model", "score", "value", "protocol", "source"), scores, left=5)
    yield tables.grid("Sources", ("number", "source"), sources.rows(), left=2)


def _about(card: "Card", sources: _Sources) -> list[tuple[str, str]]:
    from emocap_pretrain.benchmarks.card import ClassTarget

    rows = [("name", card.name), ("about", card.about), ("items", card.media)]
    if isinstance(card.target, ClassTarget):
        rows.append(("classes", ", ".join(card.target.classes)))
    rows += [
        ("target", f"{card.target.kind} {sources.mark(card.target.source)}"),
        ("scores", f"{', '.join(card.scores)} {sources.mark(card.scores_source)}"),
        ("scored split", card.scored + (f", mean of {card.folds} folds" if card.folds else "")),
    ]
    if card.attributes:
        rows.append(("attributes", f"{', '.join(card.attributes.names)} {sources.mark(card.attributes.source)}"))
    told = (("licence", card.licence), ("how to get it", card.obtain), ("citation", card.citation))
    return rows + [(name, f"{fact.text} {sources.mark(fact.source)}") for name, fact in told]


def _splits(card: "Card", sources: _Sources) -> list[tuple[str, str, str]]:
    def size(samples: object) -> str:
        if isinstance(samples, tuple):
            return ", ".join(f"{each:,}" for each in samples)
        return "unknown" if samples is None else f"{samples:,}"

    return [(name, sources.mark(each.source), size(each.samples)) for name, each in card.splits.items()]


def _codes_mark(layout: "Layout", sources: _Sources) -> str:
    """Returns where the codes of the classes in a layout were read; "-" if its files hold no classes."""
    return sources.mark(layout.codes_source or layout.source) if layout.codes else "-"
