"""Defines the looks of each region of the face: the action units that cause a look, and the phrases that describe it.

The phrases are in looks.toml, which explains their placeholders.

A look is more than its action units: "lowered" and "lowered and drawn together" are both AU 4, and only one of them is
true of a face (decision 31). So a captioner chooses a look, and the grammar chooses among the phrases of this look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from emocap_pretrain.captions.grammar.action_units import BANDS, Band
from emocap_pretrain.captions.grammar.words import WORDS, Words, read

Phrases = Mapping[tuple[Band, ...], Words]
"""The phrases for each group of bands of the first action unit; the groups may overlap."""


class Region(StrEnum):
    """Names the regions of the face, by the words that follow "the" in a sentence."""

    EYEBROWS = "eyebrows"
    EYES = "eyes"
    CHEEKS = "cheeks"
    NOSE = "nose"
    LIP_CORNERS = "lip corners"
    LIPS = "lips"
    CHIN = "chin"


@dataclass(frozen=True, eq=False)
class Look:
    """Defines a visible state of a region. If `units` is empty, no action unit of the region is active.

    Looks are compared by identity, because two looks may have the same action units and different phrases.

    Attributes:
        units: The numbers of the action units that cause the look.
        clauses: Main clauses for local sentences.
        cues: Noun phrases for summaries.
    """

    units: tuple[int, ...]
    clauses: Phrases
    cues: Phrases

    def covers(self, band: Band) -> bool:
        """Returns whether this look has clauses for this band of its first action unit."""
        return any(band in bands for bands in self.clauses)


@dataclass(frozen=True, slots=True)
class RegionState:
    """Describes one region of a face by its look and by the band of each action unit of the look.

    `bands` has as many entries as `look.units`, in the same order, and is empty for a region at rest. A state has no
    side, because neither captioner describes one half of a face alone.
    """

    region: Region
    look: Look
    bands: tuple[Band, ...] = ()

    @property
    def at_rest(self) -> bool:
        return not self.look.units

    def clauses(self) -> Words:
        return self._matching(self.look.clauses)

    def cues(self) -> Words:
        """Returns the noun phrases for this state; there are none if a summary never names the state."""
        return self._matching(self.look.cues)

    def _matching(self, phrases: Phrases) -> Words:
        found = (words for bands, words in phrases.items() if self.at_rest or self.bands[0] in bands)
        return tuple(phrase for words in found for phrase in words)


def _phrases(given: Words | Mapping[str, Words]) -> Phrases:
    """Returns the phrases of a look for each group of bands.

    `given` comes from the TOML file. It is a mapping from the names of some bands, separated by blanks, to their
    phrases, or a list of phrases that fit all bands.
    """
    if isinstance(given, Mapping):
        return {tuple(map(Band, bands.split())): words for bands, words in given.items()}
    return {BANDS: given}


LOOKS: Mapping[str, Look] = {
    name: Look(tuple(look["units"]), _phrases(look["clauses"]), _phrases(look.get("cues", ())))
    for name, look in read("looks.toml").items()
}
"""The looks of all regions by their names."""

AT_REST: Mapping[Region, Look] = {
    Region(region): Look((), _phrases(clauses), {}) for region, clauses in WORDS["at_rest"].items()
}
"""The look of each region in which no action unit is active."""
