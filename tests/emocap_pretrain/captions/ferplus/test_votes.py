import pytest

from emocap_pretrain.captions.ferplus.votes import EMOTIONS, Level, is_face, majority, mixture, summary, whole


def votes(**given: int) -> dict[str, int]:
    return {**dict.fromkeys((*EMOTIONS, "unknown", "NF"), 0), **given}


def said(*, key: str = "k", **given: int) -> str:
    return whole(mixture(votes(**given)), key)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"happiness": 9, "neutral": 1}, "happiness"),
        ({"happiness": 5, "neutral": 5}, ""),
        ({"sadness": 5, "neutral": 3, "fear": 1, "anger": 1}, "sadness"),  # 5 of 8, single votes dropped
        ({"neutral": 4, "unknown": 6}, ""),
        ({"NF": 10}, ""),
    ],
)
def test_the_label_is_the_majority_without_outliers(given: dict[str, int], label: str) -> None:
    assert majority(votes(**given)) == label


def test_a_face_that_nobody_can_read_is_none() -> None:
    assert is_face(votes(sadness=5, unknown=3, neutral=2))
    assert not is_face(votes(sadness=4, unknown=4, neutral=2))
    assert not is_face(votes(NF=8, neutral=2))


def test_agreement_is_a_strong_level_if_the_face_shows_it() -> None:
    assert mixture(votes(happiness=9, neutral=1)).level is Level.STRONG
    assert mixture(votes(happiness=9, neutral=1), expressive=False).level is Level.MODERATE


def test_nine_votes_for_happiness_read_clearly_happy() -> None:
    words = {said(key=str(number), happiness=9, neutral=1) for number in range(40)}
    assert any("clearly happy" in sentence for sentence in words)
    assert not any("neutral" in sentence or "faint" in sentence for sentence in words)


def test_sadness_and_some_neutral_read_subdued_and_close_to_neutral() -> None:
    mix = mixture(votes(sadness=5, neutral=4, anger=1))
    assert (mix.first, mix.second, mix.level) == ("sadness", "neutral", Level.FAINT)
    assert any("close to neutral" in whole(mix, str(number)) for number in range(20))
    assert "sadness close to neutral" in summary(mix, (), "k")


def test_an_even_mixture_names_both() -> None:
    sentence = said(fear=4, surprise=5)
    assert "alarm" in sentence
    assert "surprise" in sentence
    assert "fear" in sentence


def test_an_even_mixture_without_a_name_of_its_own_names_both_too() -> None:
    sentence = said(contempt=5, fear=4)
    assert "contempt" in sentence
    assert "fear" in sentence


def test_doubt_is_said() -> None:
    words = {said(key=str(number), sadness=7, unknown=3) for number in range(20)}
    assert any("hard to read" in sentence for sentence in words)
    assert any("perhaps" in sentence for sentence in words)


def test_a_summary_is_one_sentence_with_emotion_and_cues() -> None:
    mix = mixture(votes(happiness=10))
    for number in range(20):
        sentence = summary(mix, ("lip corners pulled up and back", "raised cheeks"), str(number))
        assert "happiness" in sentence
        assert "ip corners pulled up and back and raised cheeks" in sentence
        assert sentence.count(".") == 1


@pytest.mark.parametrize("first", EMOTIONS)
@pytest.mark.parametrize("second", EMOTIONS)
@pytest.mark.parametrize("share", [10, 7, 5])
def test_every_mixture_has_words(first: str, second: str, share: int) -> None:
    given = {second: 10 - share, first: share} if first != second else {first: 10}
    for expressive in (True, False):
        mix = mixture(votes(**given), expressive=expressive)
        assert whole(mix, "k").endswith(".")
        assert summary(mix, ("parted lips",), "k").endswith(".")


def test_votes_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="map them by name"):
        majority({"happy": 10})
