"""Reads the text of a model's answer as a caption, or names the reason why it is none.

The form of an answer is `FaceAnswer`, whose JSON schema an endpoint can enforce. What a model writes is not trusted:
its length is limited before it is parsed, and all values are checked. Only repairs that cannot change the caption are
made: a block of thoughts, code fences, and text around one JSON object are removed, and counted.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

from emocap_shards.sample import Caption
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from emocap_pretrain.captioning.protocol import CaptionAnswer, TokenUsage
from emocap_pretrain.captions.grammar.action_units import ACTION_UNITS, Band

MOST_LETTERS = 1 << 16
"""An answer with more letters is not parsed. A complete answer has about 2,000."""
LONGEST_SENTENCE = 600
_MOST_UNITS = 12
_KEPT_LETTERS = 2000  # Letters of an unusable answer that are stored.

REASONS: Mapping[str, str] = {
    "no_face": "the model sees no face",
    "several_faces": "the model sees several faces, and none is clearly the main one",
    "unreadable": "the model cannot see the face well enough",
    "refused": "the model or the endpoint refuses to describe the face",
    "prose": "the answer is prose without a JSON object",
    "not_json": "the answer has a JSON object that cannot be parsed",
    "wrong_form": "the answer is JSON of another form",
    "cut": "the answer was cut at the largest number of tokens",
    "too_long": "the answer is too long",
    "empty": "the answer is empty",
}
"""All reasons of an answer without a caption. The first four are final, and the others are worth another request."""

_FINAL = ("no_face", "several_faces", "unreadable", "refused")
_REFUSAL = re.compile(
    r"\s*(?:i.?m (?:very )?sorry|sorry|i apologi[sz]e|i can(?:no|.)t|i can not|i(?:.m| am) (?:unable|not able)|"
    r"as an ai)\b",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(r"```[a-z]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)

_Item = TypeVar("_Item")


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    if len(line) > LONGEST_SENTENCE:
        raise ValueError(f"it has more than {LONGEST_SENTENCE} letters")
    if not line.isprintable():
        raise ValueError("it has control characters")
    return line


def _known_unit(unit: int) -> int:
    if unit not in ACTION_UNITS:
        raise ValueError(f"action unit {unit} is not one of {', '.join(map(str, ACTION_UNITS))}")
    return unit


def _few(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if len(items) > _MOST_UNITS:
        raise ValueError(f"it has more than {_MOST_UNITS} items")
    return items


# The lengths are checked by functions and not by the schema, because endpoints refuse schemas with `maxLength`.
Sentence: TypeAlias = Annotated[str, AfterValidator(_sentence)]
RegionName = Literal["eyebrows", "eyes", "cheeks", "nose", "mouth", "chin"]
_EXACT = ConfigDict(extra="forbid")


@checked(frozen=True, config=_EXACT)
class UnitAnswer:
    """Holds an action unit of an answer, by its FACS number, with its intensity."""

    unit: Annotated[int, AfterValidator(_known_unit)]
    intensity: Band


@checked(frozen=True, config=_EXACT)
class RegionAnswer:
    """Holds what an answer says of one region of the face (`captions/grammar/recognition.py`)."""

    region: RegionName
    state: Sentence
    action_units: Annotated[tuple[UnitAnswer, ...], AfterValidator(_few)]
    sentence: Sentence


@checked(frozen=True, config=_EXACT)
class FaceAnswer:
    """Holds the content of an answer. In JSON, `global_` is called "global"."""

    problem: Literal["none", "no_face", "several_faces", "unreadable"]
    global_: Annotated[Sentence, Field(alias="global")]
    regions: Annotated[tuple[RegionAnswer, ...], AfterValidator(_few)]
    summary: Sentence
    cues: Annotated[tuple[Sentence, ...], AfterValidator(_few)]


_ANSWER: TypeAdapter[FaceAnswer] = TypeAdapter(FaceAnswer)
_REGION: TypeAdapter[RegionAnswer] = TypeAdapter(RegionAnswer)


def answer_schema() -> dict[str, Any]:
    """Returns the JSON schema of an answer, in the subset that endpoints enforce (all members required, no others)."""
    return _bare(_ANSWER.json_schema())


def _bare(schema: Any) -> Any:
    """Returns a schema without titles and descriptions, which repeat the names and docstrings of this module."""
    if isinstance(schema, dict):
        members = cast("dict[str, Any]", schema).items()
        return {name: _bare(each) for name, each in members if name not in {"title", "description"}}
    return [_bare(each) for each in cast("list[Any]", schema)] if isinstance(schema, list) else schema


class _Unusable(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_answer(
    text: str, *, refusal: str = "", is_cut: bool = False, usage: TokenUsage | None = None, model: str = ""
) -> CaptionAnswer:
    """Returns the caption in a model's answer, or the reason why there is none.

    Args:
        text: The text of the answer.
        refusal: The text in which the endpoint says that the model refuses; "" if there is none.
        is_cut: Whether the endpoint says that the answer reached the largest number of tokens.
        usage: The tokens and the cost.
        model: The name of the model.
    """
    repairs: list[str] = []
    usage = usage or TokenUsage()
    try:
        found = _checked(_object_in(text, refusal, is_cut, repairs))
    except _Unusable as error:
        kept = " ".join(part for part in (error.detail, refusal or text) if part)[:_KEPT_LETTERS]
        final = error.reason in _FINAL
        return CaptionAnswer(reason=error.reason, final=final, text=kept, usage=usage, model=model)
    return CaptionAnswer(
        caption=Caption(found.global_, tuple(each.sentence for each in found.regions), found.summary),
        regions=tuple(_REGION.dump_python(each, mode="json") for each in found.regions),
        cues=found.cues,
        repairs=tuple(repairs),
        usage=usage,
        model=model,
    )


def _object_in(text: str, refusal: str, is_cut: bool, repairs: list[str]) -> str:
    """Returns the text of the one JSON object in an answer, and adds the names of the repairs that were necessary."""
    if refusal:
        raise _Unusable("refused")
    if len(text) > MOST_LETTERS:
        raise _Unusable("too_long")
    if not text.strip():
        raise _Unusable("cut" if is_cut else "empty")
    if thoughts := _THOUGHTS.match(text):
        repairs.append("thoughts")
        text = text[thoughts.end() :]
    fences = _FENCE.findall(text)
    if len(fences) == 1:
        repairs.append("code fence")
        text = fences[0]
    start = text.find("{")
    if start < 0:
        raise _Unusable("cut" if is_cut else "refused" if _REFUSAL.match(text) else "prose")
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _Unusable("cut" if is_cut else "not_json", str(error)[:200]) from error
    if "{" in text[end:]:
        raise _Unusable("wrong_form", "there is more than one JSON object")
    if text[:start].strip() or text[end:].strip():
        repairs.append("prose around")
    return text[start:end]


def _checked(found: str) -> FaceAnswer:
    """Returns the values of a JSON object after all checks."""
    try:
        answer = _ANSWER.validate_json(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _Unusable("wrong_form", f"{place}: {first['msg']}"[:300]) from error
    if answer.problem != "none":
        raise _Unusable(answer.problem)
    names = [each.region for each in answer.regions]
    if not answer.global_ or not answer.summary or not all(each.sentence for each in answer.regions):
        raise _Unusable("wrong_form", "a text is empty")
    if len(set(names)) < len(names):
        raise _Unusable("wrong_form", "a region occurs twice")
    return answer
