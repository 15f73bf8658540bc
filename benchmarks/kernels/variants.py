"""The losses that are computed: objective, mining, and the fewest operations that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emocap_kernels import Mining

from .size import Size

Pass = Literal["forward", "forward+backward"]
FORWARD: Pass = "forward"
BOTH: Pass = "forward+backward"
PASSES: tuple[Pass, ...] = (FORWARD, BOTH)

# Number of matrix products of a guide. A guide that compares the logits themselves needs none.
_GUIDES = {"counterpart": 2, "consensus": 2, "text": 1, "image": 1, "joint": 0}


@dataclass(frozen=True, slots=True)
class Variant:
    """One loss.

    Attributes:
        name: Name in the records, unique within a subject.
        objective: The argument of `contrastive_loss`.
        mining: How positives are mined.
        function: Describes what is computed, if it is a function other than the plain loss, mined or not.
    """

    name: str
    objective: Literal["infonce", "sigmoid"] = "infonce"
    mining: Mining | None = None
    function: str | None = None

    @property
    def mining_in_words(self) -> str | None:
        if self.mining is None:
            return None
        rules = {"threshold": self.mining.threshold, "top_k": self.mining.top_k}
        return ", ".join([self.mining.guide, *(f"{name} {rule}" for name, rule in rules.items() if rule is not None)])


# In the batches of pairs.draw, cosines are about 2/3 for own pairs, 1/3 within a group and 0 between groups.
_THRESHOLD = 0.25
PLAIN = Variant("plain")
THRESHOLD = Variant("threshold", mining=Mining(guide="counterpart", threshold=_THRESHOLD))
SIGMOID = Variant("sigmoid", objective="sigmoid")
VARIANTS = (
    PLAIN,
    THRESHOLD,
    Variant("top_k", mining=Mining(guide="counterpart", top_k=4)),
    Variant("joint", mining=Mining(guide="joint", threshold=_THRESHOLD)),
    SIGMOID,
)

# In the batches of regions.draw, cosines are about 2/3 for similar sentences, 1/6 within an image, else 0.
LOCAL_THRESHOLD = Variant("threshold", mining=Mining(guide="text", threshold=0.4))
SPARC = Variant("sparc", function="in the form of SPARC: the sentences of one image compete for its patches")
FLAIR = Variant(
    "flair", function="in the style of FLAIR: the cosine with the vector that a sentence pools from patches"
)
MAXSIM = Variant("maxsim", function="the best patch of every pair: scores alone, without a loss")
LOCAL_VARIANTS = (PLAIN, LOCAL_THRESHOLD, SPARC, FLAIR, MAXSIM)


def floor_flops(variant: Variant, pass_: Pass, size: Size) -> float:
    """Returns the fewest floating-point operations that compute `variant` exactly without keeping a matrix.

    One product of images and texts is 2 rows² width. Forward computes one. Backward computes it again (except for
    `sigmoid`, whose gradient needs no normaliser), and two for the gradients.
    """
    product = 2.0 * size.rows * size.rows * size.width
    if pass_ == FORWARD:
        return product * (1 + _guide_products(variant))
    gradients = 3 if variant.objective == "sigmoid" else 4
    return product * (gradients + _minings(variant) * _guide_products(variant))


def local_floor_flops(variant: Variant, pass_: Pass, size: Size) -> float:
    """Returns the fewest floating-point operations of a local loss without keeping similarities.

    One product of all patches and all sentences is 2 rows patches sentences width. Forward computes one. Backward
    computes it again, and two for the gradients. Pooled vectors (`flair`) need more, which is not counted. Within one
    image (`sparc`) each sentence is compared with the patches of its own image only: a product for the similarities and
    one for the pooling, which are small enough to be kept, and four for the gradients.
    """
    patches, sentences = size.regions
    own = 2.0 * patches * sentences * size.width
    if variant == SPARC:
        return own * (2 if pass_ == FORWARD else 6)
    mined = 2.0 * sentences * sentences * size.width * _guide_products(variant)
    if pass_ == FORWARD:
        return own * size.rows + mined
    return own * size.rows * 4 + mined * _minings(variant)


def _minings(variant: Variant) -> int:
    """Returns how often forward and backward together compute the mined positives."""
    return 2 if variant.mining is not None and variant.mining.threshold is not None else 1


def _guide_products(variant: Variant) -> int:
    return 0 if variant.mining is None else _GUIDES[variant.mining.guide]
