"""Defines the settings of the captions with which images are trained."""

from typing import Annotated

from pydantic import Field

from emocap_pretrain.config.fields import Section

# A part that is never trained has the weight 0 in `objective` instead.
DropProbability = Annotated[float, Field(ge=0, lt=1)]


class CaptionDropConfig(Section):
    """Configures which parts of captions are left out at random. The global part always stays."""

    summary: DropProbability = Field(
        default=0.0,
        description="Probability that the summary is left out. The global sentence then takes its place, as for a "
        "caption without a summary.",
    )
    local: DropProbability = Field(default=0.0, description="Probability that all local sentences are left out.")
    each_local: DropProbability = Field(
        default=0.0, description="Probability that a local sentence is left out, each on its own."
    )


class CaptionsConfig(Section):
    """Configures which caption of an image is trained in an epoch, and which parts of it are left out."""

    weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Relative probabilities of the first, the second, ... caption of an image, in the order in which "
        "they were packed. The last one counts for all further captions. null draws each equally often.",
    )
    per_part: bool = Field(
        default=False,
        description="Choose the caption for the global part, the local sentences and the summary separately.",
    )
    drop: CaptionDropConfig = Field(default=CaptionDropConfig(), description="Parts that are left out at random.")
