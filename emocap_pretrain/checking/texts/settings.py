"""Defines the settings of the checks of texts, and makes the checks from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from emocap_pretrain.checking.check import CaptionCheck
from emocap_pretrain.checking.texts.attributes import attribute_check
from emocap_pretrain.checking.texts.boilerplate import boilerplate_check
from emocap_pretrain.checking.texts.consistency import ClaimsOf, ConsistencyCheck, movements
from emocap_pretrain.checking.texts.emotion_agreement import LabelAgreementCheck, PartAgreementCheck
from emocap_pretrain.checking.texts.form import form_check
from emocap_pretrain.checking.texts.language import LanguageCheck
from emocap_pretrain.checking.texts.length import WORDS, LengthCheck, TokensCheck
from emocap_pretrain.checking.texts.parts import PartsCheck, RepetitionCheck
from emocap_pretrain.config.fields import Count, LabelName, Positive, Section

PartName = Literal["global", "local", "summary"]
AttributeName = Literal["age", "gender", "ethnicity", "religion", "attractiveness", "health", "identity", "name"]
Bounds = tuple[Positive, Positive]


class TextChecksConfig(Section):
    """Holds the settings of the checks of texts.

    Attributes:
        required: The parts that a caption must have.
        regions: How many regions of the face the local sentences describe at least.
        sentences_per_region: The greatest number of local sentences about one region.
        words: The least and the greatest number of words of each part; parts that are not given keep the defaults.
        one_sentence: The parts that consist of one sentence.
        language: Code of the language of the captions (ISO 639), such as "en"; None if the language is not judged.
        attributes: Which statements about the person are faults.
        pronouns: Whether pronouns with a gender are faults too.
        allowed_names: Capitalized words that are no names of persons.
        label: The label that names the emotion of a sample; None if captions are not compared with labels.
    """

    required: tuple[PartName, ...] = get_args(PartName)
    regions: Count = 3
    sentences_per_region: Positive = 2
    words: dict[PartName, Bounds] = Field(default_factory=dict[PartName, Bounds])
    one_sentence: tuple[PartName, ...] = ("global", "local")
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = "en"
    attributes: tuple[AttributeName, ...] = get_args(AttributeName)
    pronouns: bool = False
    allowed_names: tuple[str, ...] = ()
    label: LabelName | None = "emotion"

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        for part, (least, most) in self.words.items():
            if least > most:
                raise ValueError(
                    f"words.{part}: the least number of words, {least}, is above the greatest one, {most}."
                )
        return self


def text_checks(
    config: TextChecksConfig,
    *,
    claims_of: ClaimsOf = movements,
    counts: Callable[[Sequence[str]], Sequence[int]] | None = None,
    limits: Mapping[str, int] | None = None,
) -> tuple[CaptionCheck, ...]:
    """Returns the checks of texts in the order of the page docs/checking-texts.md.

    Args:
        config: The settings.
        claims_of: Returns the claims of a sentence, by which the captions of one image are compared.
        counts: Counts the tokens of texts, such as `Tokenizer.counts`; None if tokens are not counted.
        limits: The greatest number of tokens of each part; it is needed with `counts`.

    Raises:
        ConfigError: If the language is unknown.
    """
    checks: list[CaptionCheck] = [
        PartsCheck(required=config.required, regions=config.regions),
        RepetitionCheck(per_region=config.sentences_per_region),
        form_check(),
        LengthCheck(words={**WORDS, **config.words}, one_sentence=config.one_sentence),
    ]
    if counts is not None:
        checks.append(TokensCheck(counts=counts, limits=limits or {}))
    if config.language is not None:
        checks.append(LanguageCheck(language=config.language))
    names = frozenset(name.lower() for name in config.allowed_names)
    checks += [
        attribute_check(categories=config.attributes, pronouns=config.pronouns, ordinary=names),
        boilerplate_check(),
        PartAgreementCheck(),
    ]
    if config.label is not None:
        checks.append(LabelAgreementCheck(label=config.label))
    return (*checks, ConsistencyCheck(claims_of=claims_of))
