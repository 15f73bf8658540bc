"""Defines the looks of each region of the face: the action units that cause a look, and the phrases that describe it.

The phrases are in looks.toml, which explains their placeholders.

A look is one way in which a region can look. Its action units alone do not determine it: eyebrows that are "lowered"
and eyebrows that are "lowered and drawn together" both show action unit 4, but only one of the two phrases is true of a
face (decision 31). So a captioner (a module that writes captions) chooses the look, and the grammar chooses among its
phrases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from emocap_pretrain.captions.grammar.action_units import BANDS, Band
from emocap_pretrain.captions.grammar.words import WORDS, Words, read

Phrases = Mapping[tuple[Band, ...], Words]
"""The phrases for each group of bands of the first action unit; the groups may overlap."""


class Region(StrEnum):
    """Names the regions of the face. Each value is what follows "the" in a sentence, such as "lip corners"."""

    EYEBROWS = "eyebrows"
    EYES = "eyes"
    CHEEKS = "cheeks"
    NOSE = "nose"
    LIP_CORNERS = "lip corners"
    LIPS = "lips"
    CHIN = "chin"


@dataclass(frozen=True, eq=False)
class Look:
    """Defines one way in which a region can look, with the phrases that describe it.

    If `units` is empty, the region is at rest. Looks are compared by identity, because two looks may have the same
    action units and different phrases.

    Attributes:
        units: The FACS numbers of the action units that cause the look. The intensity of the first one decides which of
            the phrases fit.
        clauses: Main clauses for local sentences.
        cues: Noun phrases for summaries.
    """

    units: tuple[int, ...]
    clauses: Phrases
    cues: Phrases

    def covers(self, band: Band) -> bool:
        """Returns whether this look has clauses for a face on which its first action unit has the intensity `band`."""
        return any(band in bands for bands in self.clauses)


@dataclass(frozen=True, slots=True)
class RegionState:
    """Describes one region of a face: which look it has, and how intense each action unit of this look is.

    A look is one way in which a region can look, such as raised eyebrows. `bands` holds the band of intensity of each
    action unit, in the order of `look.units`, and is empty for a region at rest. A state does not distinguish left and
    right, because no captioner describes one half of a face alone.
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
        """Returns the noun phrases that describe this state in a summary. Some states have none."""
        return self._matching(self.look.cues)

    def _matching(self, phrases: Phrases) -> Words:
        found = (words for bands, words in phrases.items() if self.at_rest or self.bands[0] in bands)
        return tuple(phrase for words in found for phrase in words)


def _phrases(given: Words | Mapping[str, Words]) -> Phrases:
    """Converts phrases from the TOML file (`given`) to a mapping from groups of bands to the phrases that fit them.

    A band is one of five steps of the intensity of an action unit. `given` is a list of phrases that fit all bands, or
    a mapping. A key of the mapping names one or more bands, separated by blanks.
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
