"""Writes and reads checks.jsonl, the file of the findings of a dataset.

Its first line says what was checked: the version of the format, the dataset and its digest, the checks, and the
population of faces. Every other line is a finding, with the key and the number of captions of its sample. An
interrupted run leaves checks.jsonl.part, to which the same run continues.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any, TextIO

from emocap_shards.inspecting.findings import CheckedDataset, CheckTally

from emocap_pretrain.checking.agreement import AGREES
from emocap_pretrain.checking.check import CaptionCheck, CaptionedFace
from emocap_pretrain.errors import DataError

VERSION = 1
FINDINGS_FILE = "checks.jsonl"


def lines_of(faces: Iterable[CaptionedFace], checks: Sequence[CaptionCheck]) -> Iterator[str]:
    """Yields one line of JSON for each finding."""
    for face in faces:
        for check in checks:
            for finding in check.findings(face):
                line = {"key": face.key, "captions": len(face.captions), **asdict(finding)}
                yield json.dumps(line, ensure_ascii=False) + "\n"


@dataclass(slots=True)
class FindingsWriter:
    """Writes checks.jsonl. What is written after each call of `add` survives the end of the process.

    Attributes:
        path: The file.
        about: The first line.
        done: Number of samples that the file already covers.
    """

    path: Path
    about: Mapping[str, Any]
    done: int = 0

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def _progress(self) -> Path:
        return self.path.with_name(f"{self.path.name}.progress")

    def start(self) -> int:
        """Opens the file and returns the number of samples that an interrupted run of the same work has finished."""
        head = json.dumps({"version": VERSION, **self.about}, ensure_ascii=False, sort_keys=True) + "\n"
        digest = hashlib.sha256(head.encode()).hexdigest()
        try:
            stored = json.loads(self._progress.read_text(encoding="utf-8"))
            if stored["of"] == digest and self._part.stat().st_size >= stored["bytes"]:
                os.truncate(self._part, stored["bytes"])
                self.done = int(stored["samples"])
                return self.done
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # Nothing of this work exists yet, or the note of its progress is damaged: it begins anew.
        self._part.write_text(head, encoding="utf-8")
        self._note(digest)
        return 0

    def add(self, lines: Iterable[str], samples: int) -> None:
        """Appends the findings of the next `samples` samples."""
        with self._part.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.done += samples
        self._note(json.loads(self._progress.read_text(encoding="utf-8"))["of"])

    def finish(self) -> None:
        """Gives the complete file its name; an earlier one is replaced."""
        self._part.replace(self.path)
        self._progress.unlink()

    def _note(self, digest: str) -> None:
        new = self._progress.with_suffix(".new")
        state = {"of": digest, "samples": self.done, "bytes": self._part.stat().st_size}
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self._progress)


@dataclass(slots=True)
class Tally:
    """Counts the findings of one check about one region.

    Attributes:
        agree: Findings with a score of at least `AGREES`.
        disagree: Findings with a lower score.
        abstain: Findings without a score.
        total: Sum of the scores.
    """

    agree: int = 0
    disagree: int = 0
    abstain: int = 0
    total: float = 0.0

    def add(self, score: float | None) -> None:
        if score is None:
            self.abstain += 1
            return
        self.total += score
        if score >= AGREES:
            self.agree += 1
        else:
            self.disagree += 1

    @property
    def mean(self) -> float | None:
        judged = self.agree + self.disagree
        return self.total / judged if judged else None


@dataclass(slots=True)
class FindingsSummary:
    """Summarizes the findings of a dataset.

    Attributes:
        tallies: The counts by check and region; the region "" is the text as a whole.
        most: How many of the findings with the lowest scores are kept for each check.
    """

    most: int = 5
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict[tuple[str, str], Tally])
    _worst: dict[str, list[tuple[float, int, dict[str, Any]]]] = field(default_factory=dict[str, Any])
    _seen: Counter[str] = field(default_factory=Counter[str])

    def add(self, finding: dict[str, Any]) -> None:
        """Counts a finding, which is a line of checks.jsonl."""
        check, score = finding["check"], finding["score"]
        self.tallies.setdefault((check, finding["region"]), Tally()).add(score)
        self._seen[check] += 1
        if score is None or score >= AGREES or not self.most:
            return
        heap = self._worst.setdefault(check, [])
        # The heap holds the negative scores, so that its first entry is the least bad one; earlier findings win.
        entry = (-score, -self._seen[check], finding)
        if len(heap) < self.most:
            heappush(heap, entry)
        else:
            heappushpop(heap, entry)

    def table(self) -> tuple[CheckTally, ...]:
        """Returns the counts, sorted by check and region."""
        return tuple(
            CheckTally(check, region, each.agree, each.disagree, each.abstain, each.mean)
            for (check, region), each in sorted(self.tallies.items())
        )

    def worst(self, check: str) -> list[dict[str, Any]]:
        """Returns the findings of a check with the lowest scores, the lowest first."""
        return [
            finding for _, _, finding in sorted(self._worst.get(check, ()), key=lambda entry: (-entry[0], -entry[1]))
        ]


def dataset_of(path: Path) -> str:
    """Returns the digest of the dataset whose findings a file holds.

    Raises:
        DataError: If the file cannot be read, or is of another version.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return str(_head(path, file)["digest"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error


def read_findings(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the findings of a file.

    Raises:
        DataError: If the file cannot be read, or is of another version.
    """
    try:
        with path.open(encoding="utf-8") as file:
            _head(path, file)
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from error


def checked(path: Path, keys: Collection[str]) -> CheckedDataset:
    """Returns the findings of a file for the page of a dataset, with the reasons of the low scores of some samples.

    Args:
        path: The file.
        keys: Keys of the samples whose reasons are kept.

    Raises:
        DataError: If the file cannot be read, or is of another version.
    """
    summary = FindingsSummary(0)
    notes: dict[str, list[str]] = {}
    for finding in read_findings(path):
        summary.add(finding)
        if finding["key"] in keys and finding["score"] is not None and finding["score"] < AGREES:
            notes.setdefault(finding["key"], []).append(
                f"{finding['check']} {finding['score']:.2f}: {finding['reason']}"
            )
    return CheckedDataset(summary.table(), {key: tuple(found) for key, found in notes.items()})


def _head(path: Path, file: TextIO) -> dict[str, Any]:
    about = json.loads(file.readline())
    if about.get("version") != VERSION:
        raise DataError(f"{path} has the version {about.get('version')}, and this program reads {VERSION}.")
    return about


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as a file of `emocap check` ({error}).")
