"""Defines `emocap check`, which compares the captions of a dataset with their faces and with rules for texts.

The package `checking` does the work. This module converts the options and prints the table.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import MANIFEST
from rich.console import RenderableType
from tqdm import tqdm

from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.cli.tables import grid, plain
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.terminal import console, errors_as_lines

if TYPE_CHECKING:
    from emocap_shards.inspecting.findings import CheckTally

    from emocap_pretrain.checking.check import CaptionCheck
    from emocap_pretrain.checking.faces import TrustedLandmarks
    from emocap_pretrain.checking.findings_file import FindingsSummary
    from emocap_pretrain.checking.population import FacePopulation


def command(
    data: Annotated[str, typer.Argument(help="Packed dataset.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ", help="Landmarks of its faces (emocap landmarks); without, texts are checked alone."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for checks.jsonl.")] = None,
    population: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Faces to compare with; default those of NPZ, if they are 300 or more."),
    ] = None,
    save_population: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Write the population of the faces of NPZ.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a check to make; can be repeated.")] = None,
    below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK=SCORE",
            help="Leave out what this check gives a lower score; can be repeated. Needs --filter.",
        ),
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="FILE", help="Write the filter file of --below.")
    ] = None,
    worst: Annotated[int, typer.Option(help="Findings with the lowest scores to print for each check.", min=0)] = 3,
    debug: Debug = False,
) -> None:
    """Check captions against the measured faces and against rules for texts.

    Give landmarks only if the captions were not written from these landmarks. Nothing in the dataset is changed. With
    --out, the same command resumes an interrupted one. The file of --filter says which sentences are not used; emocap
    pack, pretrain and evaluate read it.
    """
    with errors_as_lines(debug=debug), ExitStack() as closing:
        from emocap_pretrain.checking.faces import TrustedLandmarks

        found = TrustedLandmarks.read(landmarks) if landmarks else None
        people = _population(found, landmarks, population)
        if save_population:
            _save(save_population, found, landmarks)
        folder = out or Path(closing.enter_context(TemporaryDirectory()))
        checks = _chosen(people, only)
        thresholds = _thresholds(below, filter_, [check.name for check in checks])
        summary = _checked(data, found, checks, people, _folder(folder), worst)
        _show(summary, people)
        if filter_:
            _write_filter(filter_, data, folder, thresholds)
        if out:
            console.print(f"{out}/checks.jsonl has all findings.")


def _population(
    found: "TrustedLandmarks | None", landmarks: Path | None, given: Path | None
) -> "FacePopulation | None":
    from emocap_pretrain.checking.faces import RENDERED
    from emocap_pretrain.checking.population import MIN_FACES, FacePopulation

    if found is None:
        if given:
            raise ConfigError("--population compares faces: give their --landmarks too.")
        return None
    own = None if given else found.population(f"the faces of {landmarks}")
    if own:
        return own
    path = given or RENDERED
    try:
        people = FacePopulation.from_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--population {path}: it cannot be read ({error}).") from error
    if not given:
        console.print(
            f"{landmarks} has fewer than {MIN_FACES} faces, so they are compared with {people.source}; "
            "the ranks of photographs are wrong among them, so give --population for photographs."
        )
    return people


def _save(path: Path, found: "TrustedLandmarks | None", landmarks: Path | None) -> None:
    check_writable("--save-population", path)
    own = found.population(f"the faces of {landmarks}") if found else None
    if own is None:
        raise ConfigError("--save-population needs --landmarks with 300 faces or more.")
    write_text("--save-population", path, json.dumps(own.to_json()) + "\n")


def _chosen(people: "FacePopulation | None", only: list[str] | None) -> "tuple[CaptionCheck, ...]":
    from emocap_pretrain.checking.registry import all_checks

    checks = all_checks(people)
    names = [check.name for check in checks]
    for name in only or ():
        if name not in names:
            needs = "; it needs --landmarks" if name == "agreement" else ""
            raise ConfigError(f"--only {name}: there is no such check{needs}. There are {', '.join(names)}.")
    return tuple(check for check in checks if not only or check.name in only)


def _thresholds(below: list[str] | None, filter_: str | None, checks: list[str]) -> dict[str, float]:
    """Returns the thresholds by the names of the checks.

    Raises:
        ConfigError: If only one of the two options is given, a check is not made, or a score is not one.
    """
    if bool(below) != bool(filter_):
        raise ConfigError("--below and --filter belong together: --below agreement=0.2 --filter filter.jsonl.")
    found: dict[str, float] = {}
    for text in below or ():
        name, _, number = text.partition("=")
        if name not in checks:
            raise ConfigError(f"--below {text}: the check is not made; there are {', '.join(checks)}.")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if not 0 < found[name] <= 1:
            raise ConfigError(f"--below {text}: write a score above 0 and up to 1, such as {name}=0.2.")
    return found


def _write_filter(address: str, data: str, folder: Path, thresholds: dict[str, float]) -> None:
    from emocap_shards.filter_file import write_filter
    from emocap_shards.manifest import read_manifest
    from emocap_shards.printable import printable
    from emocap_shards.store import open_store

    from emocap_pretrain.checking.findings_file import FINDINGS_FILE, read_findings
    from emocap_pretrain.checking.thresholds import filtered

    file = filtered(read_manifest(open_store(data)).digest, read_findings(folder / FINDINGS_FILE), thresholds)
    write_filter(address, file)
    console.print(printable(f"{address}: {counted(len(file.exclusions), 'exclusion')}."), markup=False)
    for origin, counts in zip(file.origins, file.counts(), strict=True):
        parts = ", ".join(f"{number:,} {_PLURALS[part]}" for part, number in sorted(counts.items()))
        console.print(f"  {origin.name} below {origin.below:g}: {parts or 'none'}.")


_PLURALS = {"caption": "captions", "global": "global", "summary": "summaries", "local": "local sentences"}


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: it cannot be made ({error}); give a folder that you may write.") from error
    check_writable("--out", folder / "checks.jsonl")
    return folder


def _checked(
    data: str,
    landmarks: "TrustedLandmarks | None",
    checks: "Iterable[CaptionCheck]",
    people: "FacePopulation | None",
    folder: Path,
    worst: int,
) -> "FindingsSummary":
    """Writes checks.jsonl into the folder and returns its summary."""
    from emocap_shards.library import Library
    from emocap_shards.manifest import read_manifest
    from emocap_shards.store import open_store

    from emocap_pretrain.checking.faces import faces_of
    from emocap_pretrain.checking.findings_file import (
        FINDINGS_FILE,
        FindingsSummary,
        FindingsWriter,
        lines_of,
        read_findings,
    )

    checks = tuple(checks)
    try:
        need_answer(data, MANIFEST)
        digest = read_manifest(open_store(data)).digest
        library = Library.open(data)
    except (ManifestError, StoreError) as error:
        raise ConfigError(str(error)) from error
    samples = sum(library.samples)
    if library.without_caption == samples:
        raise DataError(f"{data} has no captions, so there is nothing to check.")
    writer = FindingsWriter(folder / FINDINGS_FILE, _about(data, digest, landmarks, checks, people))
    first = writer.start()
    with tqdm(desc="checking", total=samples, initial=first, unit="sample", disable=None, leave=False) as bar:
        for faces in faces_of(library, landmarks, first):
            writer.add(lines_of(faces, checks), len(faces))
            bar.update(len(faces))
    writer.finish()
    summary = FindingsSummary(worst)
    for finding in read_findings(folder / FINDINGS_FILE):
        summary.add(finding)
    return summary


def _about(
    data: str,
    digest: str,
    landmarks: "TrustedLandmarks | None",
    checks: "Iterable[CaptionCheck]",
    people: "FacePopulation | None",
) -> dict[str, Any]:
    points = hashlib.sha256(landmarks.points.tobytes()).hexdigest() if landmarks else ""
    compared = {"source": people.source, "faces": people.faces} if people else None
    names = [check.name for check in checks]
    return {"data": data, "digest": digest, "landmarks": points, "checks": names, "population": compared}


def _show(summary: "FindingsSummary", people: "FacePopulation | None") -> None:
    tallies = summary.table()
    console.print(findings_table(tallies), soft_wrap=False)
    if people:
        console.print(f"Faces are compared with {counted(people.faces, 'face')}: {people.source}.")
    for check in dict.fromkeys(each.check for each in tallies):
        for finding in summary.worst(check):
            console.print(plain(f"{finding['key']}, {check} {finding['score']:.2f}: {finding['reason']}", 200))


def findings_table(tallies: "Iterable[CheckTally]") -> RenderableType:
    """Returns the counts of findings as a table for the terminal."""
    rows = [
        (
            each.check,
            each.region or "-",
            *(f"{count:,}" for count in (each.agree, each.disagree, each.abstain)),
            "-" if each.mean is None else f"{each.mean:.2f}",
        )
        for each in tallies
    ]
    return grid("Findings", ("check", "region", "agree", "disagree", "abstain", "mean score"), rows, left=2)
