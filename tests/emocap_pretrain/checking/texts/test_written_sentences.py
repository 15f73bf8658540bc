"""Measures the checks of texts on sentences that people wrote: what they find, what they miss, and what they accuse.

The files `*_before.jsonl` were written before the vocabularies, the files `*_after.jsonl` and `*_third.jsonl` after
them. What the first run of each file found is in docs/checking-texts.md; the words that it missed were added then. So
these tests keep what was reached, and do not measure how well other texts are judged.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.sample import Caption

from emocap_pretrain.checking.check import CaptionCheck, CaptionedFace
from emocap_pretrain.checking.texts.settings import TextChecksConfig, text_checks

FILES = ("before", "after", "third")


def _rows(name: str) -> list[dict[str, Any]]:
    text = Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def _checks() -> dict[str, CaptionCheck]:
    return {check.name: check for check in text_checks(TextChecksConfig())}


def _score(check: str, global_: str, summary: str = "") -> float | None:
    face = CaptionedFace(key="face", captions=[Caption(global_, (), summary)])
    return _checks()[check].findings(face)[0].score


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("check", ["attributes", "boilerplate", "form"])
def test_faults_are_found_and_right_sentences_are_not_accused(check: str, name: str) -> None:
    rows = [row for row in _rows(f"sentences_{name}") if row["check"] == check]
    assert {bool(row["faults"]) for row in rows} == {True, False}
    wrong = [row["text"] for row in rows if (_score(check, row["text"]) != 1) != bool(row["faults"])]
    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_findings_name_the_kind_of_each_fault(name: str) -> None:
    """A finding may name further kinds: a refusal also speaks of the picture."""
    missed: list[str] = []
    for row in _rows(f"sentences_{name}"):
        if row["check"] == "language" or not row["faults"]:
            continue
        categories: Sequence[Any] = _checks()[row["check"]].categories  # type: ignore[attr-defined]
        found = {category.name for category in categories if category.found(row["text"])}
        if not set(row["faults"]) <= found | ({"identity"} if "name" in found else set()):
            missed.append(row["text"])
    # The weight of a person is judged as a matter of looks, and was written as one of health.
    assert missed == (["The overweight person has puffed cheeks and a frown."] if name == "before" else [])


def _verdict(score: float | None) -> str:
    if score is None:
        return "unknown"
    return "agree" if score >= 0.7 else "contradict" if score <= 0.2 else "partly"


@pytest.mark.parametrize("name", FILES)
def test_global_sentences_and_summaries_are_compared(name: str) -> None:
    rows = _rows(f"pairs_{name}")
    assert {row["verdict"] for row in rows} == {"agree", "contradict", "partly", "unknown"}
    wrong = {
        row["global"]: _verdict(score)
        for row in rows
        if _verdict(score := _score("part_agreement", row["global"], row["summary"])) != row["verdict"]
    }
    # Rest and rage are not quite the opposites of each other.
    assert wrong == ({"The person feels content and relaxed.": "partly"} if name == "before" else {})


def test_foreign_sentences_are_found_and_short_english_ones_are_not_judged() -> None:
    rows = [row for row in _rows("sentences_before") if row["check"] == "language"]
    scores = {row["text"]: _score("language", row["text"]) for row in rows}
    assert [scores[row["text"]] for row in rows if row["faults"]] == [0.0] * 17
    english = [scores[row["text"]] for row in rows if not row["faults"]]
    assert 0.0 not in english
    assert english.count(1.0) >= 9
