"""Tests the sentences that measure a checker of captions."""

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from emocap_shards.sample import Caption

from benchmarks.checking.falsifier import KINDS, UNITS, TrueUnits, WrittenClaim, written_claims
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS
from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.captions.rendered.captioner import caption
from emocap_pretrain.captions.rendered.dataset import sample_face

NOTHING = Caption("A face.", (), "")


@cache
def _of_rendered_faces(count: int = 150) -> list[tuple[TrueUnits, Caption, list[WrittenClaim]]]:
    found: list[tuple[TrueUnits, Caption, list[WrittenClaim]]] = []
    for index in range(count):
        face = sample_face(3, index)
        truth, text = TrueUnits.symmetric(face.actions.strength), caption(face)
        found.append((truth, text, written_claims(str(index), text, truth)))
    return found


def test_each_claim_has_the_truth_of_its_kind() -> None:
    kinds: Counter[str] = Counter()
    for truth, _, claims in _of_rendered_faces():
        for claim in claims:
            kinds[claim.kind] += 1
            assert claim.is_true == (claim.kind == "true")
            for unit in claim.units:
                strength = truth.strength(unit)
                denied = any(claim.text[1:-1] == clause[1:] for clause in UNITS[unit].deny)
                expected = {
                    "true": (strength == 0) == denied,
                    "negation": denied and strength >= 0.35,
                    "wrong_unit": not denied and strength == 0,
                    "wrong_side": not denied and strength >= 0.35,
                    "wrong_intensity": not denied and strength > 0 and not 0.35 < strength < 0.65,
                }
                assert expected[claim.kind], (claim, strength)
    assert kinds.keys() == set(KINDS)
    assert min(kinds.values()) > 100


def test_the_words_name_their_region_first_and_are_not_those_of_the_grammar() -> None:
    grammar = {
        clause
        for look in (*LOOKS.values(), *AT_REST.values())
        for clauses in look.clauses.values()
        for clause in clauses
    }
    for unit, words in UNITS.items():
        for clause in (*words.affirm, *words.deny, *words.side):
            text = clause.format(how="", side="left")
            assert area_of(text) == words.region, (unit, text)
            assert text not in grammar
    for _, text, claims in _of_rendered_faces():
        for claim in claims:
            assert "{" not in claim.text
            assert area_of(claim.text) == claim.region
            if claim.sentence is not None:
                assert area_of(text.local[claim.sentence]) == claim.region
            assert claim.text not in text.local


@pytest.mark.parametrize(("active", "absent"), [("left", "right"), ("right", "left")])
def test_a_movement_of_one_side_is_claimed_of_the_other_one(active: str, absent: str) -> None:
    units = {"left": {}, "right": {}, active: {14: 0.6}}
    claims = written_claims("face", NOTHING, TrueUnits(**units))
    sided = {
        claim.is_true: claim.text for claim in claims if f" {active} " in claim.text or f" {absent} " in claim.text
    }
    assert f" {active} " in sided[True]
    assert f" {absent} " in sided[False]
    both = written_claims("face", NOTHING, TrueUnits({14: 0.8}, {14: 0.4}))
    assert "wrong_side" not in {claim.kind for claim in both}


def test_a_unit_that_looks_like_an_active_one_is_neither_claimed_nor_denied() -> None:
    claims = written_claims("face", NOTHING, TrueUnits.symmetric({12: 0.9}))
    assert {unit for claim in claims for unit in claim.units} & {6, 7, 14, 20} == set()


def test_a_sentence_of_the_caption_becomes_its_opposite_only_if_this_is_false() -> None:
    text = Caption("A face.", ("The eyebrows are slightly raised (AU1 at low intensity).", "The chin is at rest."), "")

    def edited(units: dict[int, float]) -> list[str]:
        claims = written_claims("face", text, TrueUnits.symmetric(units))
        return [claim.text for claim in claims if claim.kind == "edited"]

    assert edited({1: 0.3}) == ["The eyebrows are slightly lowered.", "The chin is not at rest."]
    assert edited({1: 0.3, 4: 0.3}) == ["The chin is not at rest."]


def test_the_command_writes_the_same_lines_again() -> None:
    command = [sys.executable, "-m", "benchmarks.checking", "--faces", "3", "--seed", "3"]
    root = Path(__file__).parents[2]
    lines = subprocess.run(command, capture_output=True, check=True, text=True, cwd=root).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["index"] for row in rows} == {0, 1, 2}
    face = sample_face(3, 2)
    expected = written_claims("3-2", caption(face), TrueUnits.symmetric(face.actions.strength), 3)
    assert [row["text"] for row in rows if row["index"] == 2] == [claim.text for claim in expected]
