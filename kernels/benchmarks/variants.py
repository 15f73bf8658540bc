"""What is computed: the objective, the mining, and the fewest operations that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emocap_kernels import Mining

Pass = Literal["forward", "forward+backward"]
FORWARD: Pass = "forward"
BOTH: Pass = "forward+backward"
PASSES: tuple[Pass, ...] = (FORWARD, BOTH)

# Guides that compare something other than the logits, and so cost a product of their own each.
_GUIDES = {"counterpart": 2, "consensus": 2, "text": 1, "image": 1, "joint": 0}


@dataclass(frozen=True, slots=True)
class Variant:
    """One loss of the package; `name` is what the records call it."""

    name: str
    objective: Literal["infonce", "sigmoid"] = "infonce"
    mining: Mining | None = None

    @property
    def mining_in_words(self) -> str | None:
        if self.mining is None:
            return None
        rules = {"threshold": self.mining.threshold, "top_k": self.mining.top_k}
        return ", ".join([self.mining.guide, *(f"{name} {rule}" for name, rule in rules.items() if rule is not None)])


# batches.draw gives cosines of about 2/3 to own pairs, 1/3 within a group and 0 between groups.
_THRESHOLD = 0.25
PLAIN = Variant("plain")
SIGMOID = Variant("sigmoid", objective="sigmoid")
VARIANTS = (
    PLAIN,
    Variant("threshold", mining=Mining(guide="counterpart", threshold=_THRESHOLD)),
    Variant("top_k", mining=Mining(guide="counterpart", top_k=4)),
    Variant("joint", mining=Mining(guide="joint", threshold=_THRESHOLD)),
    SIGMOID,
)


def floor_flops(variant: Variant, pass_: Pass, rows: int, width: int) -> float:
    """The fewest floating point operations with which `variant` can be had exactly, without a matrix kept.

    One product of images and texts is 2 rows² width. Forward makes one; backward makes it again (but for `sigmoid`,
    whose gradients need no normaliser) and two for the gradients.
    """
    product = 2.0 * rows * rows * width
    if pass_ == FORWARD:
        return product * (1 + _guide_products(variant))
    gradients = 3 if variant.objective == "sigmoid" else 4
    repeated = 2 if variant.mining is not None and variant.mining.threshold is not None else 1
    return product * (gradients + repeated * _guide_products(variant))


def _guide_products(variant: Variant) -> int:
    return 0 if variant.mining is None else _GUIDES[variant.mining.guide]
