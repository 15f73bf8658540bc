"""Reads the prompt of a captioner, which is a TOML file with a version, and builds the messages of a request.

A prompt of this package lies in the folder `prompts`. A user may name a file of their own. No prompt may ask for what
identifies a person or a group of people: a prompt with such words is refused, and `PRIVACY` follows every prompt.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from emocap_pretrain.captioning.protocol import FaceFacts
from emocap_pretrain.errors import ConfigError

FOLDER = Path(__file__).with_name("prompts")
LARGEST_BYTES = 1 << 16

PRIVACY = (
    "Never name the person, never guess who it is, and write nothing about age, sex, gender, origin, ethnicity, skin "
    "colour, religion, health or attractiveness. Say 'the person' and 'the face'."
)

_PERSONAL = re.compile(
    r"\b(ages?|aged|genders?|sex|man|woman|male|female|race|racial|ethnic\w*|nationalit\w*|religio\w*|skin|identit\w*|"
    r"who is|celebrit\w*|famous|attractive\w*|beaut\w*|disab\w*|diseases?|criminal\w*|sexual\w*)\b",
    re.IGNORECASE,
)
_PERSONAL_LABEL = re.compile(
    r"(?<![a-z])(age|gender|sex|race|ethnic\w*|nationality|religion|skin\w*|person|subject|identity|name|id|actor)"
    r"(?![a-z])",
    re.IGNORECASE,
)

_Text = Annotated[str, Field(min_length=1, max_length=16_384)]
_EXACT = ConfigDict(extra="forbid")


@checked(frozen=True, config=_EXACT)
class FactLines:
    """Holds the lines about known facts. `{name}` and `{value}` are replaced in a line."""

    opening: _Text
    label: _Text
    votes: _Text
    units: _Text
    valence: _Text
    arousal: _Text


@checked(frozen=True, config=_EXACT)
class AgainText:
    """Holds the text of a request after an answer that could not be used; `{reason}` is replaced."""

    text: _Text


@checked(frozen=True, config=_EXACT)
class PromptFile:
    """Holds the content of a file of a prompt."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
    version: Annotated[int, Field(ge=1)]
    system: _Text
    user: _Text
    facts: FactLines
    again: AgainText


_FILE: TypeAdapter[PromptFile] = TypeAdapter(PromptFile)


@dataclass(frozen=True, slots=True)
class CaptionPrompt:
    """Holds a prompt that was read from a file, and the digest of the file and of `PRIVACY`."""

    file: PromptFile
    digest: str
    title: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", f"{self.file.name} {self.file.version}")

    @property
    def system(self) -> str:
        """Returns the constant part of every request."""
        return f"{self.file.system.strip()}\n\n{PRIVACY}"

    def user(self, facts: str, earlier: str = "") -> str:
        """Returns the text after the image, with the text about facts (`facts_text`) and the reason of a repetition."""
        again = self.file.again.text.replace("{reason}", earlier) if earlier else ""
        return self.file.user.replace("{facts}", facts) + again

    def facts_text(self, facts: FaceFacts) -> str:
        """Returns the lines about known facts; "" if nothing is known."""
        lines = "".join(self._lines(facts))
        return f"{self.file.facts.opening}{lines}" if lines else ""

    def _lines(self, facts: FaceFacts) -> Iterator[str]:
        form = self.file.facts
        for name, value in sorted(facts.labels.items()):
            yield form.label.replace("{name}", name).replace("{value}", _shown(value))
        if facts.votes:
            yield form.votes.replace("{value}", _listed({name: f"{share:.0%}" for name, share in facts.votes.items()}))
        if facts.units:
            units = {f"AU{unit}": _shown(value) for unit, value in sorted(facts.units.items())}
            yield form.units.replace("{value}", _listed(units))
        for line, value in ((form.valence, facts.valence), (form.arousal, facts.arousal)):
            if value is not None:
                yield line.replace("{value}", _shown(value))


def read_prompt(name: str | Path = "faces") -> CaptionPrompt:
    """Reads a prompt of this package by its name, or the file at a path that ends in ".toml".

    Raises:
        ConfigError: If the file cannot be read, does not have the form of a prompt, or asks for personal attributes.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"the prompt {path} has more than {LARGEST_BYTES >> 10} KiB: shorten it.")
        found = _FILE.validate_python(tomllib.loads(data.decode()))
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.toml")))
        cure = f"name one of {known}, or a file that ends in .toml"
        raise ConfigError(f"the prompt {path} cannot be read ({error.strerror}): {cure}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the prompt {path}: {place}: {first['msg']}.") from error
    except ValueError as error:
        raise ConfigError(f"the prompt {path} is not TOML in UTF-8 ({' '.join(str(error).split())}).") from error
    if word := _PERSONAL.search(f"{found.system}\n{found.user}\n{found.again.text}"):
        cure = "a prompt must not ask for what identifies a person or a group of people; remove the word"
        raise ConfigError(f"the prompt {path} says {word[0]!r}: {cure}.")
    return CaptionPrompt(found, hashlib.sha256(data + PRIVACY.encode()).hexdigest()[:16])


def is_personal(label: str) -> bool:
    """Returns whether the name of a label says that it identifies a person or a group of people."""
    return _PERSONAL_LABEL.search(label.replace("_", " ")) is not None


def check_fact(name: str) -> None:
    """Checks that a label may be sent to a model as a known fact.

    Raises:
        ConfigError: If the name of the label says that it identifies a person or a group of people.
    """
    if is_personal(name):
        raise ConfigError(f"--fact {name}: this label identifies a person or a group, and is not sent; leave it out.")


def _shown(value: str | float) -> str:
    text = value if isinstance(value, str) else f"{value:g}"
    return " ".join(text.split())[:200]  # A label is one line, so that it cannot imitate the lines of the prompt.


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
