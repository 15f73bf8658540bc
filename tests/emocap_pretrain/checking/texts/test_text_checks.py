"""Tests the checks of texts on rendered captions, which have no fault, and on the same captions with one fault."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from emocap_shards.sample import Caption
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from emocap_pretrain.captions.grammar import emotions as grammar
from emocap_pretrain.captions.grammar.action_units import Degree
from emocap_pretrain.captions.grammar.emotions import EmotionState
from emocap_pretrain.captions.grammar.sentences import Wording, global_sentence, summary
from emocap_pretrain.captions.rendered.captioner import caption as rendered_caption
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.attributes import attribute_check
from emocap_pretrain.checking.texts.consistency import ConsistencyCheck
from emocap_pretrain.checking.texts.emotion_agreement import LabelAgreementCheck, PartAgreementCheck
from emocap_pretrain.checking.texts.emotions import NamedEmotion, agreement, named_emotions
from emocap_pretrain.checking.texts.language import LanguageCheck
from emocap_pretrain.checking.texts.length import TokensCheck
from emocap_pretrain.checking.texts.settings import TextChecksConfig, text_checks
from emocap_pretrain.errors import ConfigError

CHECKS = text_checks(TextChecksConfig())
JOY = Caption(
    "The person looks delighted.",
    (
        "The corners of the mouth are clearly raised.",
        "The cheeks are pushed up.",
        "The eyes are narrowed by the raised cheeks.",
        "The eyebrows are relaxed.",
    ),
    "Overall, the raised lip corners and the lifted cheeks convey great happiness.",
)


def _findings(*captions: Caption, **labels: str | float) -> list[CaptionFinding]:
    face = CaptionedFace(key="face", captions=captions, labels=labels)
    return [finding for check in CHECKS for finding in check.findings(face)]


def _faults(findings: Sequence[CaptionFinding]) -> set[tuple[str, str, int | None]]:
    return {(each.check, each.part, each.sentence) for each in findings if each.score is not None and each.score < 0.7}


def test_rendered_captions_have_no_fault() -> None:
    for index in range(80):
        face = sample_face(7, index)
        findings = _findings(rendered_caption(face), emotion=face.emotion)
        assert _faults(findings) == set(), face
        judged = {each.check for each in findings if each.score is not None}
        assert judged == {check.name for check in CHECKS} - {"consistency"}


@pytest.mark.parametrize("name", grammar.EMOTIONS)
def test_the_sentences_of_the_grammar_agree_with_each_other_and_with_the_label(name: str) -> None:
    """The captions of FER+ have ambiguous and mixed emotions, which rendered faces do not have."""
    seconds = ["", *(each for each in grammar.EMOTIONS if each != name)]
    for number, second in enumerate(seconds):
        for even in (False, bool(second)):
            for ambiguous in (False, True):
                state = EmotionState(
                    name=name, degree=list(Degree)[number % 3], second=second, even=even, ambiguous=ambiguous
                )
                wording = Wording(f"{name} {number} {even} {ambiguous}")
                text = Caption(global_sentence(state, wording), (), summary(state, [], wording))
                face = CaptionedFace(key="face", captions=[text], labels={"emotion": name})
                scores = [
                    finding.score
                    for check in (PartAgreementCheck(), LabelAgreementCheck())
                    for finding in check.findings(face)
                ]
                # A face that is close to another emotion agrees less with its own label.
                assert all(score is not None and score >= (0.3 if even else 0.6) for score in scores), text


FAULTS: dict[str, tuple[Callable[[Caption], Caption], set[tuple[str, str, int | None]]]] = {
    "nothing": (lambda it: it, set()),
    "no summary": (lambda it: replace(it, summary=" "), {("parts", "caption", None)}),
    "one region": (lambda it: replace(it, local=it.local[:1]), {("parts", "local", None)}),
    "no region": (lambda it: _local(it, 3, "The light is soft and warm."), {("parts", "local", 3)}),
    "repeated sentence": (lambda it: _local(it, 3, it.local[1].upper()), {("repetition", "local", 3)}),
    "repeated region": (
        lambda it: replace(
            it, local=(*it.local, "The left eye is open.", "The lids are smooth.", "The eyelids are low.")
        ),
        {("repetition", "local", 5), ("repetition", "local", 6)},
    ),
    "repeated summary": (lambda it: replace(it, summary=f"{it.global_[:-1]}!"), {("repetition", "summary", None)}),
    "placeholder": (lambda it: _local(it, 0, "The mouth is {state} and {intensity}."), {("form", "local", 0)}),
    "cut": (lambda it: replace(it, summary=it.summary[:-10]), {("form", "summary", None)}),
    "two sentences": (
        lambda it: replace(it, global_="The person looks delighted. The mood is good."),
        {("length", "global", None)},
    ),
    "short": (lambda it: replace(it, global_="Joy."), {("length", "global", None)}),
    "long": (
        lambda it: replace(it, summary=it.summary[:-1] + " and calm joy, pure fun" * 40 + "."),
        {("length", "summary", None), ("form", "summary", None)},
    ),
    "foreign": (
        lambda it: _local(it, 3, "Les sourcils sont détendus et immobiles."),
        {("language", "local", 3), ("parts", "local", 3)},
    ),
    "attribute": (lambda it: replace(it, global_="The young woman looks delighted."), {("attributes", "global", None)}),
    "refusal": (lambda it: _local(it, 2, "I cannot see the eyes of the person."), {("boilerplate", "local", 2)}),
    "contradiction": (
        lambda it: replace(it, summary="Overall, the lowered lip corners convey great sadness."),
        {("part_agreement", "caption", None), ("label_agreement", "summary", None)},
    ),
}


def _local(caption: Caption, index: int, text: str) -> Caption:
    local = list(caption.local)
    local[index] = text
    return replace(caption, local=tuple(local))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_own_check_and_at_its_own_place(fault: str) -> None:
    change, expected = FAULTS[fault]
    assert _faults(_findings(change(JOY), emotion="Happy")) == expected


def test_findings_quote_the_words_that_they_accuse_and_are_safe_to_print() -> None:
    caption = Caption("An elderly Mr. Smith\x1b[31m looks sad.", (), "")
    [finding] = attribute_check().findings(CaptionedFace(key="face", captions=[caption]))
    assert finding.score == 0
    assert '"elderly"' in finding.reason
    assert '"Mr. Smith"' in finding.reason
    assert finding.reason.isprintable()


def test_pronouns_count_only_if_a_setting_says_so() -> None:
    face = CaptionedFace(key="face", captions=[Caption("His lips are parted, and he looks sad.", (), "")])
    assert attribute_check().findings(face)[0].score == 1
    assert attribute_check(pronouns=True).findings(face)[0].score == 0
    assert attribute_check(categories=["age"]).findings(face)[0].score == 1
    with pytest.raises(ValueError, match="unknown categories"):
        attribute_check(categories=["shoe size"])


@pytest.mark.parametrize("name", ["Happy", "happiness", "joy", "HAPPY", "happily_surprised"])
def test_labels_are_read_like_texts(name: str) -> None:
    face = CaptionedFace(key="face", captions=[JOY], labels={"emotion": name, "mood": 3.0, "place": "street"})
    assert [finding.score for finding in LabelAgreementCheck().findings(face)] >= [0.7, 0.7]
    for other in ("mood", "place", "absent"):
        assert {finding.score for finding in LabelAgreementCheck(label=other).findings(face)} == {None}


def test_every_word_of_the_grammar_for_an_emotion_is_known_by_its_class() -> None:
    words = {
        name: [
            grammar.HINTS.get(name, name),
            *(word for degree in grammar.FEELS.get(name, {}).values() for word in degree),
        ]
        for name in grammar.EMOTIONS
    }
    for name, phrases in words.items():
        for phrase in phrases:
            assert any(name in each.classes for each in named_emotions(f"The person looks {phrase}.")), phrase
    for shade in grammar.SHADES.values():
        for word in shade:
            assert named_emotions(f"The person looks {word}."), word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The person is not angry but sad.", {"angry": True, "sad": False}),
        ("No clear signs of joy, fear or disgust are visible.", {"joy": True, "fear": True, "disgust": True}),
        (
            "There are no emotions such as joy, fear, or anger.",
            {"no emotions": False, "joy": True, "fear": True, "anger": True},
        ),
        ("There is no gesture that indicates joy, and the person looks sad.", {"joy": True, "sad": False}),
        ("The face shows no trace of fear, anger or disgust.", {"fear": True, "anger": True, "disgust": True}),
        ("The person is not angry, just sad.", {"angry": True, "sad": False}),
        ("The person cannot hide the joy.", {"joy": False}),
        ("It is not only surprise but joy.", {"surprise": False, "joy": False}),
        ("There is no doubt that the person is happy.", {"happy": False}),
        ("There is no smile, and the person looks sad.", {"sad": False}),
        ("The person looks sad rather than afraid.", {"sad": False, "afraid": True}),
        ("The person doesn't seem happy.", {"happy": True}),
        ("Neither joy nor surprise is visible.", {"joy": True, "surprise": True}),
        ("The eyebrows are relaxed, and the mouth is tense.", {}),
        ("The person is relaxed.", {"relaxed": False}),
        ("The image content is surprisingly wonderful.", {}),
    ],
)
def test_denials_and_false_friends_are_understood(text: str, expected: dict[str, bool]) -> None:
    assert {each.words: each.denied for each in named_emotions(text)} == expected


WORDS = [
    "happy",
    "mildly",
    "furious",
    "not",
    "no",
    "without",
    "sad",
    "and",
    "or",
    ",",
    "but",
    "a hint of",
    "fear",
    "calm",
]


@given(
    st.lists(st.sampled_from([*WORDS, "positive", "bored", "."]), max_size=12),
    st.lists(st.sampled_from(WORDS), max_size=12),
)
def test_agreement_is_symmetric_and_in_its_range(first: list[str], second: list[str]) -> None:
    here, there = named_emotions(" ".join(first)), named_emotions(" ".join(second))
    score = agreement(here, there)
    assert score == pytest.approx(agreement(there, here))
    assert score is None or 0 <= score <= 1
    named: list[NamedEmotion] = [each for each in here if not each.denied]
    if named:
        assert agreement(named, named) == pytest.approx(1.0)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_text_is_judged_with_a_reason_that_is_safe_to_print(texts: list[str]) -> None:
    first, *local = texts
    findings = _findings(Caption(first, tuple(local), first[::-1]), Caption(first, (), ""), emotion=first)
    assert all(finding.reason.isprintable() and finding.reason.endswith(".") for finding in findings)


def test_several_captions_are_compared_by_emotion_and_claims() -> None:
    odd = Caption("The person looks furious.", ("The eyebrows are lowered.",), "Overall, the face conveys rage.")
    check = ConsistencyCheck()
    scores = [finding.score for finding in check.findings(CaptionedFace(key="face", captions=[JOY, JOY, odd]))]
    # The order is emotion and claims of each caption.
    assert scores == [0.5, pytest.approx(0.5), 0.5, pytest.approx(0.5), 0.0, 0.0]
    assert check.findings(CaptionedFace(key="face", captions=[JOY])) == ()
    own = ConsistencyCheck(claims_of=lambda sentence: sentence.lower().split()[:1])
    assert [each.score for each in own.findings(CaptionedFace(key="face", captions=[JOY, odd]))][1] == 1.0


def test_tokens_beyond_those_that_the_tower_reads_are_found() -> None:
    check = TokensCheck(counts=lambda texts: [len(text.split()) + 2 for text in texts], limits={"summary": 10})
    [finding] = check.findings(CaptionedFace(key="face", captions=[JOY]))
    assert (finding.part, finding.score) == ("summary", 10 / 14)
    assert finding.reason == "The summary has 14 tokens, and the text tower reads 10, so its end is cut."


def test_another_language_may_be_expected() -> None:
    texts = Caption("Das Gesicht zeigt eine deutliche Freude.", ("The eyebrows are slightly raised.",), "Ja.")
    face = CaptionedFace(key="face", captions=[texts])
    assert [each.score for each in LanguageCheck(language="de").findings(face)] == [1.0, 0.0, None]
    with pytest.raises(ConfigError, match="language='xx' is unknown"):
        LanguageCheck(language="xx")


def test_wrong_settings_are_refused_and_given_ones_reach_the_checks() -> None:
    with pytest.raises(ValidationError, match="the least number of words, 9, is above the greatest one, 3"):
        TextChecksConfig.model_validate({"words": {"global": [9, 3]}})
    with pytest.raises(ValidationError):
        TextChecksConfig.model_validate({"atributes": ["age"]})
    checks = text_checks(
        TextChecksConfig.model_validate(
            {"language": None, "label": None, "allowed_names": ["Smith"], "words": {"global": [1, 3]}}
        ),
        counts=lambda texts: [1] * len(texts),
        limits={"global": 1},
    )
    names = [check.name for check in checks]
    assert "tokens" in names
    assert not {"language", "label_agreement"} & set(names)
    face = CaptionedFace(key="face", captions=[Caption("The glad Smith laughs.", (), "")])
    found = {finding.check: finding for check in checks for finding in check.findings(face) if finding.part == "global"}
    assert found["attributes"].score == 1
    assert found["length"].score == 0.75


def test_the_example_of_the_page_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[4] / "docs" / "checking-texts.md").read_text(encoding="utf-8")
    code, shown = (re.search(rf"```{name}\n(.*?)```", page, re.DOTALL) for name in ("python", "text"))
    assert code
    assert shown
    exec(code[1], {})
    assert capsys.readouterr().out == shown[1]
