"""Turns the findings of a dataset into a filter file: what has a score below the threshold of its check is left out."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from emocap_shards.filter_file import Exclusion, FilterFile, FilterOrigin

MADE_BY = "emocap check"
_LONGEST_REASON = 1000


def filtered(dataset: str, findings: Iterable[Mapping[str, Any]], below: Mapping[str, float]) -> FilterFile:
    """Returns the filter of a dataset.

    A finding about a local sentence excludes the sentence; one about a part excludes the part, and one about the
    caption the caption. Findings without a score exclude nothing, because the check could not know.

    Args:
        dataset: Digest of the dataset's manifest.
        findings: The lines of checks.jsonl (`read_findings`).
        below: The threshold of each check that is applied, in [0, 1], by the name of the check.

    Raises:
        FilterError: If a value of a finding is outside of the bounds of a filter file.
    """
    names = sorted(below)
    origins = [FilterOrigin(name, MADE_BY, below[name]) for name in names]
    return FilterFile.of(dataset, origins, _exclusions(findings, below, names))


def _exclusions(
    findings: Iterable[Mapping[str, Any]], below: Mapping[str, float], names: list[str]
) -> Iterator[Exclusion]:
    for _, of_sample in groupby(findings, lambda finding: finding["key"]):
        # A sentence with several wrong claims is excluded once by each check, with the reason of the lowest score.
        lowest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for finding in of_sample:
            check, score = finding["check"], finding["score"]
            if score is None or check not in below or score >= below[check]:
                continue
            place = check, finding["caption"], finding["part"], finding["sentence"]
            if place not in lowest or score < lowest[place]["score"]:
                lowest[place] = finding
        for finding in lowest.values():
            yield Exclusion(
                key=finding["key"],
                origin=names.index(finding["check"]),
                part=finding["part"],
                caption=finding["caption"],
                sentence=finding["sentence"],
                captions=finding["captions"],
                reason=finding["reason"][:_LONGEST_REASON],
            )
