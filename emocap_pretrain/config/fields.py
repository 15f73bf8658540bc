"""Kinds of values that settings have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[int, Field(ge=3)]  # The marks of start and end, and a token between them.


def _with_a_place(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"{template!r} has no {{}}, where the words for a class go.")
    return template


Template = Annotated[str, AfterValidator(_with_a_place)]
Words = Annotated[tuple[str, ...], Field(min_length=1)]


class Section(BaseModel):
    """A frozen block of settings; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
