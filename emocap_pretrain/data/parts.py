"""Defines the parts of a structured caption that a run can align with its images.

Code that handles the parts of a caption, such as the loader, the towers and the estimate of memory, iterates over the
active parts and mentions no part by name. A part is active if its weight is above 0. A new part needs a `Part` here, a
weight in `config/objective.py` and a length in `config/model.py`. docs/extend/part.md shows an example, and
decision 23 gives the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emocap_shards.sample import Caption

from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """Defines one part of a caption.

    Attributes:
        name: Its name in the config, in metrics and in reports.
        texts: Function that returns the texts of this part in a caption; an empty sequence if the caption has none.
        aligned_with: What the loss compares the texts of this part with. "image": one text is compared with the pooled
            vector of the image; if a caption has no text of this part, its global sentence is used. "patches": any
            number of texts are compared with the patches of the image.
        texts_per_image: Number of texts for each image that the estimates of memory and time assume.
    """

    name: str
    texts: Callable[[Caption], Sequence[str]]
    aligned_with: Literal["image", "patches"]
    texts_per_image: int = 1

    def texts_to_encode(self, caption: Caption) -> Sequence[str]:
        """Returns the texts that the tower encodes for this caption.

        A part that is aligned with the image has at least one text: the global sentence replaces a missing one.
        """
        found = self.texts(caption)
        return found or _global(caption) if self.aligned_with == "image" else found


# Functions of the module rather than lambdas, because parts are pickled for loader processes.
def _global(caption: Caption) -> Sequence[str]:
    return (caption.global_,)


def _summary(caption: Caption) -> Sequence[str]:
    return (caption.summary,) if caption.summary else ()


def _local(caption: Caption) -> Sequence[str]:
    return caption.local


def _whole(caption: Caption) -> Sequence[str]:
    return (" ".join((caption.global_, *caption.local, *_summary(caption))),)


PROMPT_PART = Part("global", _global, "image")
"""The part that the prompts of an evaluation resemble; prompts are cut to its length."""

WHOLE = Part("whole", _whole, "image")
"""All parts of a caption as one text, which an evaluation can compare with images. No loss uses it."""

# The order is that in which the towers encode the parts. It is the same on all ranks, which ZeRO stage 3 needs.
PARTS: tuple[Part, ...] = (
    PROMPT_PART,
    Part("summary", _summary, "image"),
    Part("local", _local, "patches", texts_per_image=5),
)


def active_parts(weights: Mapping[str, float]) -> tuple[Part, ...]:
    """Returns the parts whose weight is above 0, in the order in which the towers encode them.

    Args:
        weights: The weight of every part by its name (`ObjectiveConfig.weights`).

    Raises:
        ConfigError: If the names differ from those of `PARTS`, for example because a new part has no weight setting.
    """
    names = [part.name for part in PARTS]
    if sorted(names) != sorted(weights):
        raise ConfigError(
            f"the parts of a caption are {', '.join(names)} (parts.py), but the objective has weights for "
            f"{', '.join(weights)}: give every part a weight in config/objective.py and a length in config/model.py."
        )
    return tuple(part for part in PARTS if weights[part.name] > 0)
