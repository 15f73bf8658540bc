"""Describes by a few numbers the network between the ranks of a job, and the peak rates of their devices."""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError

GB = 1e9


@dataclass(frozen=True, slots=True)
class Link:
    """One rank's share of a network while all ranks use it, in one direction; `latency_s` is that of one message."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """Ranks on nodes, fast links inside of them and slower ones between.

    Attributes:
        vectors_behind_loss: Share of the time of the loss in which vectors travel beside it.
        gradients_behind_towers: Share of the time of the towers in which gradients are reduced beside them. 0 is
            DeepSpeed without `overlap_comm`, its default below ZeRO stage 3.
    """

    words: str
    ranks_per_node: int
    inside: Link
    between: Link
    vectors_behind_loss: float = 0.5
    gradients_behind_towers: float = 0.0

    def nodes(self, ranks: int) -> int:
        return -(-ranks // self.ranks_per_node)


# Line rates are the vendors': NVLink 4 of an H100 has 900 GB/s in both directions together, a DGX H100 one ConnectX-7
# of 400 Gb/s for each GPU (NVIDIA, DGX H100 datasheet). Assumed: long messages reach eight tenths of a line rate.
REACHED = 0.8
_NVLINK = Link(REACHED * 450 * GB, 5e-6)
FABRICS = {
    "ib400": Fabric("8 x H100, 400 Gb/s InfiniBand each", 8, _NVLINK, Link(REACHED * 50 * GB, 10e-6)),
    # One adapter for the node, as in an AWS p3dn.24xlarge; TCP.
    "eth100": Fabric("8 x H100, 100 Gb/s Ethernet together", 8, _NVLINK, Link(REACHED * 12.5 / 8 * GB, 50e-6)),
    # Processes of one machine, for runs without GPU: about what `python benchmarks cluster validate` finds.
    "gloo": Fabric("processes on one machine, gloo", 1024, Link(0.8 * GB, 800e-6), Link(0.8 * GB, 800e-6), 0.0),
}


def fabric_of(text: str) -> Fabric:
    """A preset by its name, or `RANKS_PER_NODE,INSIDE,BETWEEN` with one rank's share of each network in GB/s.

    Raises:
        ConfigError: If it is neither.
    """
    if text in FABRICS:
        return FABRICS[text]
    try:
        ranks, inside, between = (float(word) for word in text.split(","))
    except ValueError:
        ranks = inside = between = 0.0
    if ranks < 1 or ranks % 1 or min(inside, between) <= 0:
        raise ConfigError(
            f"fabric={text!r} is neither one of {', '.join(FABRICS)} nor three numbers such as 8,360,40: "
            "ranks of a node, and a rank's GB/s inside of it and between nodes."
        )
    words = f"{ranks:g} ranks a node, {inside:g} GB/s inside, {between:g} between"
    return Fabric(words, int(ranks), Link(inside * GB, 5e-6), Link(between * GB, 10e-6))


# Dense peaks in FLOP/s (NVIDIA datasheets; SXM): bfloat16 on matrix units, float32 without them, as torch computes.
_PEAKS = {
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "B200": (2250e12, 75e12),
}
# Assumed: what towers of this size and the losses keep of a peak.
KEPT = 0.4


def device_flops(name: str, *, half: bool) -> float | None:
    """FLOP/s that a step may be expected to reach on a GPU by its name in torch; None for an unknown one."""
    peaks = next((peaks for known, peaks in _PEAKS.items() if known in name), None)
    return None if peaks is None else KEPT * peaks[0 if half else 1]
