from pathlib import Path

import pytest
from pydantic import ValidationError

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import ClassTarget
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.benchmark_source import settings_of
from emocap_pretrain.evaluation.prompt_set import PromptSetConfig, expanded, names, own_prompts, shipped
from emocap_pretrain.inference.classes import prompts_of

EMOTIONS = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear", "contempt", "anxiety"]
CLASSES = {name: (name,) for name in [*EMOTIONS, "helplessness", "disappointment"]}


@pytest.mark.parametrize(("name", "each"), [("exp_clip_name", 1), ("exp_clip_five", 5), ("exp_clip_ten", 10)])
def test_every_class_has_equally_many_prompts_and_none_twice(name: str, each: int) -> None:
    templates, words = expanded(EvaluationConfig(prompts=name), CLASSES)
    for emotion in CLASSES:
        found = prompts_of(templates, {emotion: words[emotion]})
        assert len(found) == len(set(found)) == each
        assert all("{}" not in prompt and prompt.endswith(".") for prompt in found)


def test_a_set_with_own_words_replaces_those_of_the_classes_and_has_no_prompts_for_others() -> None:
    settings = EvaluationConfig(prompts="clip_benchmark")
    templates, words = expanded(settings, {"anger": ("anger",), "2": ("fear",)})
    assert words == {"anger": ("angry",), "2": ("fearful",)}
    assert prompts_of(templates, words)[:2] == [
        "a photo of a angry looking face.",
        "a photo of a face showing the emotion: angry.",
    ]
    with pytest.raises(ConfigError, match="the set has no prompts for the class 'contempt', only for anger, disgust"):
        expanded(settings, CLASSES)


def test_the_prompts_of_sadness_are_those_of_the_published_code() -> None:
    templates, words = expanded(EvaluationConfig(prompts="exp_clip_five"), CLASSES)
    assert prompts_of(templates, {"sadness": words["sadness"]}) == [
        "an expression of sadness.",
        "a cropped photo emphasizing a face expressing sadness.",
        "a photo exuding sadness in a person.",
        "a photo showing someone immersed in sadness.",
        "a photo capturing sadness within an individual.",
    ]
    assert "a clean photo showcasing a person's fearful expression." in shipped("exp_clip_ten").instead["fear"].values()


def test_classes_without_an_exception_keep_the_templates_so_each_one_can_be_scored_alone() -> None:
    classes = {"joy": ("joy", "mirth"), "rage": ("rage",)}
    assert shipped("exp_clip_ten").expanded(classes) == (shipped("exp_clip_ten").templates, classes)


def test_an_exception_takes_the_place_of_its_template_for_its_class_alone() -> None:
    found = PromptSetConfig(templates=("a {}.", "the {}!"), instead={"joy": {"the {}!": "delight!"}})
    templates, words = found.expanded({"joy": ("joy",), "fear": ("fear", "panic")})
    assert templates == ("{}",)
    assert words == {"joy": ["a joy.", "delight!"], "fear": ["a fear.", "a panic.", "the fear!", "the panic!"]}


def test_an_unknown_set_and_a_template_without_a_place_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no set of prompts 'exp_clip_fiv'; did you mean exp_clip_five\?"):
        expanded(EvaluationConfig(prompts="exp_clip_fiv"), CLASSES)
    with pytest.raises(ValidationError, match="has no"):
        PromptSetConfig(templates=("a face",))
    assert all(shipped(name).source != "unknown" for name in names() if name != "descriptions")


def test_the_descriptions_cover_the_classes_of_all_cards_with_equally_many_short_sentences() -> None:
    found = shipped("descriptions")
    assert {len(each) for each in found.classes.values()} == {4}
    sentences = [sentence for each in found.classes.values() for sentence in each]
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence.split()) <= 20 and sentence.endswith(".") for sentence in sentences)
    for card in map(catalogue.card, catalogue.names()):
        if isinstance(card.target, ClassTarget):
            settings = settings_of(EvaluationConfig(prompts="descriptions", compound="parts"), card)
            templates, words = expanded(settings, card.target.classes)
            assert templates == ("{}",)
            assert {len(each) % 4 for each in words.values()} == {0}


def test_descriptions_are_found_by_the_words_of_a_class_and_are_missing_for_others() -> None:
    settings = EvaluationConfig(prompts="descriptions")
    _, words = expanded(settings, {"3": ("joy", "happiness")})
    assert words["3"] == shipped("descriptions").classes["happiness"]
    with pytest.raises(ConfigError, match=r"no prompts for the class 'mood', only for anger, .*compound=parts"):
        expanded(settings, {"mood": ("mood",)})
    for prompts in ({}, {"templates": ("{}",), "classes": {"joy": ("joy",)}}):
        with pytest.raises(ValidationError, match="give either templates, or classes"):
            PromptSetConfig.model_validate(prompts)


def test_a_compound_class_has_its_own_words_or_the_prompts_of_its_parts() -> None:
    card = catalogue.card("raf_db_compound")
    words = settings_of(EvaluationConfig(prompts="exp_clip_five"), card)
    assert expanded(words, words.classes or {})[1]["sadly fearful"] == ("sadly fearful",)
    parts = settings_of(EvaluationConfig(prompts="exp_clip_five", compound="parts"), card)
    templates, found = expanded(parts, parts.classes or {})
    own = {name: prompts_of(*expanded(EvaluationConfig(prompts="exp_clip_five"), {name: (name,)})) for name in EMOTIONS}
    assert prompts_of(templates, {"": found["sadly fearful"]}) == [*own["sadness"], *own["fear"]]
    assert list(found) == list(parts.classes or {})
    # A benchmark with single and compound classes: the words of a single class are its own.
    some = settings_of(EvaluationConfig(compound="parts"), catalogue.card("mafw_compound"))
    assert expanded(some, some.classes or {})[1]["anger"] == ("anger",)
    assert expanded(some, some.classes or {})[1]["anger and disgust"] == ("anger", "disgust")
    whole = {name: (f"{name} here",) for name in parts.classes or {}}
    with pytest.raises(ConfigError, match="compound=parts ignores their own prompts"):
        settings_of(EvaluationConfig(classes=whole, templates=("{}",), compound="parts"), card)


def test_own_prompts_are_whole_texts_by_class(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("joy: a face that beams\nfear: [wide eyes, a tense mouth]\n")
    assert own_prompts(file) == {"joy": ("a face that beams",), "fear": ("wide eyes", "a tense mouth")}
    for text in ("- a\n", "joy: {}\n", "{", "joy: []\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"^--prompts .*own\.yaml"):
            own_prompts(file)


def test_own_prompts_for_the_classes_of_a_benchmark_are_kept_and_others_are_refused() -> None:
    card = catalogue.card("raf_db")
    own = {name: (f"a face of {name}",) for name in EMOTIONS[:7]}
    settings = EvaluationConfig(classes=own, templates=("{}",))
    found = settings_of(settings, card)
    assert list(found.classes or {}) == ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
    assert (found.classes or {})["fear"] == ("a face of fear",)
    with pytest.raises(ConfigError, match="the prompts are for the classes joy, and benchmark raf_db has the classes"):
        settings_of(EvaluationConfig(classes={"joy": ("a smile",)}, templates=("{}",)), card)
    assert (settings_of(EvaluationConfig(classes={"joy": ("joy",)}), card).classes or {})["fear"] == ("fear",)
