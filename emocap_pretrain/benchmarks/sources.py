"""Says where a fact on a card of a benchmark was read.

Public code disagrees about the same benchmark: the numbers of its classes, the sizes of its splits, the images that are
left out. So every fact about layout, classes, splits, sizes, protocol, licence, access and citation names its source,
or says that its source is unknown. A fact of unknown source is printed as unchecked.
"""

from typing import Annotated, Literal

from pydantic import Field

from emocap_pretrain.config.fields import Section


class CardSection(Section):
    """Base class of all parts of a card. A card is not a setting: users do not write it."""


Text = Annotated[str, Field(min_length=1, max_length=2000)]


class CodeSource(CardSection):
    """A file of a public repository at one commit."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$")]
    path: Text
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

    def __str__(self) -> str:
        return f"read in {self.repository}:{self.path} at {self.commit[:7]}"


class ThreadSource(CardSection):
    """A public thread in which somebody reports the fact, such as an issue of a repository."""

    thread: Text

    def __str__(self) -> str:
        return f"told in {self.thread}"


class DocumentSource(CardSection):
    """A paper, or the documentation of the benchmark. `read` says whether it was read for this card, or quoted."""

    document: Text
    read: Literal["itself", "quoted"]

    def __str__(self) -> str:
        return f"{'read' if self.read == 'itself' else 'quoted'} from {self.document}"


class ContentSource(CardSection):
    """The files of a benchmark, in which the fact was counted. `content` names the files."""

    content: Text

    def __str__(self) -> str:
        return f"counted in {self.content}"


FactSource = Literal["unknown"] | CodeSource | ThreadSource | DocumentSource | ContentSource
"""`unknown` says that no source was found. Then the fact is not used to judge a copy."""


class SourcedText(CardSection):
    """A statement in one or two sentences, and where it was read."""

    text: Text
    source: FactSource

    def __str__(self) -> str:
        return f"{self.text} ({'unchecked' if self.source == 'unknown' else self.source})"
