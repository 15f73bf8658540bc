"""Defines `emocap benchmarks`: lists the benchmarks, shows what is known about one, and checks a copy of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import FAILED, Command, Group, console, errors_as_lines, say_json

app = typer.Typer(cls=Group, help="List the benchmarks of facial emotion, and check your copies.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a benchmark (see emocap benchmarks list).")]
_SIGNS = {"equal": "ok", "different": "DIFFERENT", "unchecked": "unchecked"}


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
        console.print(tables.table(found.title, _about(found)))
        console.print(tables.grid("Splits", ("split", "items", "source"), _splits(found), left=3))
        layouts = [(each.about, str(each.source)) for each in found.layouts]
        console.print(tables.grid("Layouts of copies", ("layout", "source"), layouts, left=2))
        if found.traps:
            traps = [(each.text, str(each.source)) for each in found.traps]
            console.print(tables.grid("Known mistakes", ("what", "source"), traps, left=2))
        if found.published:
            scores = [
                (each.model, each.score, each.value_text(), each.protocol, str(each.source)) for each in found.published
            ]
            columns = ("model", "score", "value", "protocol", "source")
            console.print(tables.grid("Published scores", columns, scores, left=5))


@app.command("check", cls=Command)
def check_command(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Folder with your copy.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ", help="Landmarks of its images (launch/landmarks.py), to tell how faces are cut out."
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


def _about(card: Any) -> list[tuple[str, str]]:
    from emocap_pretrain.benchmarks.card import ClassTarget

    rows = [("name", card.name), ("about", card.about), ("items", card.media)]
    if isinstance(card.target, ClassTarget):
        rows.append(("classes", ", ".join(card.target.classes)))
    rows += [
        ("target", f"{card.target.kind}, {card.target.source}"),
        ("scores", f"{', '.join(card.scores)}; {card.scores_source}"),
        ("scored split", card.scored + (f", mean of {card.folds} folds" if card.folds else "")),
        *([("attributes", f"{', '.join(card.attributes.names)}; {card.attributes.source}")] if card.attributes else []),
        ("licence", card.licence),
        ("how to get it", card.obtain),
        ("citation", card.citation),
    ]
    return rows


def _splits(card: Any) -> list[tuple[str, str, str]]:
    def size(samples: object) -> str:
        if isinstance(samples, tuple):
            return ", ".join(f"{each:,}" for each in samples)
        return "unknown" if samples is None else f"{samples:,}"

    return [(name, size(each.samples), str(each.source)) for name, each in card.splits.items()]
