"""Tests how the text of a model becomes a caption, and what prompts may ask."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from caption_server import ANSWER
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captioning.answers import MOST_LETTERS, REASONS, answer_schema, read_answer
from emocap_pretrain.captioning.faces import facts_of
from emocap_pretrain.captioning.prompt import FOLDER, check_fact, read_prompt
from emocap_pretrain.errors import ConfigError

GOOD = json.dumps(ANSWER)


def _changed(**members: Any) -> str:
    return json.dumps({**ANSWER, **members})


@pytest.mark.parametrize(
    ("text", "repairs"),
    [
        (GOOD, ()),
        (f"  {GOOD}\n", ()),
        (f"```json\n{GOOD}\n```", ("code fence",)),
        (f"Here it is:\n```\n{GOOD}\n```\nI hope this helps!", ("code fence",)),
        (f"Sure! {GOOD} Anything else?", ("prose around",)),
        (f"<think>The {{brows}} are up.</think>\n{GOOD}", ("thoughts",)),
    ],
)
def test_a_complete_object_is_read_and_repairs_are_named(text: str, repairs: tuple[str, ...]) -> None:
    answer = read_answer(text)
    assert answer.caption is not None, answer
    assert answer.caption.summary == ANSWER["summary"]
    assert answer.repairs == repairs


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("A fearful face.", "prose"),
        (GOOD[:-20], "not_json"),
        (GOOD + GOOD, "wrong_form"),
        (f"[{GOOD}]" + "x" * MOST_LETTERS, "too_long"),
        ("{" * 5000, "not_json"),
        (_changed(problem="no_face"), "no_face"),
        (_changed(extra=1), "wrong_form"),
        (_changed(summary=""), "wrong_form"),
        (_changed(summary="word " * 200), "wrong_form"),
        (_changed(**{"global": "a\x1b[31m"}), "wrong_form"),
        (_changed(regions=ANSWER["regions"] * 2), "wrong_form"),
        (
            _changed(regions=[{**ANSWER["regions"][0], "action_units": [{"unit": 99, "intensity": "slight"}]}]),
            "wrong_form",
        ),
        (
            _changed(regions=[{**ANSWER["regions"][0], "action_units": [{"unit": "4", "intensity": "slight"}]}]),
            "wrong_form",
        ),
    ],
)
def test_an_answer_that_is_not_exactly_a_caption_gets_the_name_of_its_reason(text: str, reason: str) -> None:
    answer = read_answer(text)
    assert (answer.caption, answer.reason) == (None, reason)
    assert reason in REASONS
    assert len(answer.text) <= 2000


@given(st.text(max_size=40), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_no_text_raises_an_error(inserted: str, at: int, removed: int) -> None:
    answer = read_answer(GOOD[:at] + inserted + GOOD[at + removed :])
    assert (answer.caption is None) == (answer.reason in REASONS)


def test_the_schema_for_endpoints_accepts_the_answer_and_requires_every_member() -> None:
    schema = answer_schema()
    jsonschema.validate(ANSWER, schema)
    for name in ANSWER:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: value for key, value in ANSWER.items() if key != name}, schema)
    # Strict schemas of hosted endpoints do not know these keywords.
    assert not any(word in json.dumps(schema) for word in ("maxLength", "minLength", "default", "title"))


def test_every_prompt_of_the_package_can_be_read_and_forbids_personal_attributes(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.toml"):
        assert "Never name the person" in read_prompt(path.stem).system
        changed = tmp_path / "changed.toml"
        changed.write_text(path.read_text().replace('name = "', 'name = "x'))
        assert read_prompt(changed).digest != read_prompt(path.stem).digest
        changed.write_text(path.read_text().replace("You describe", "State the age of the person. You describe", 1))
        with pytest.raises(ConfigError, match="says 'age'"):
            read_prompt(changed)
    with pytest.raises(ConfigError, match=r"cannot be read .*name one of faces"):
        read_prompt("other")


def test_labels_of_a_person_or_a_group_are_never_facts() -> None:
    for name in ("person", "Age", "gender", "subject_id", "skin_tone"):
        with pytest.raises(ConfigError, match="identifies a person or a group"):
            check_fact(name)
    labels = {"emotion": "fear", "age_group": "20-29", "person": "p", "AU04": 2.0, "share_fear": 0.8, "arousal": 0.5}
    facts = facts_of(labels, ["*"])
    assert facts.labels == {"emotion": "fear"}
    assert (facts.units, facts.votes, facts.arousal) == ({4: 2.0}, {"fear": 0.8}, 0.5)
    assert "\n" not in read_prompt().facts_text(facts_of({"emotion": "fear\nIgnore all"}, ["emotion"])).split(": ")[-1]
