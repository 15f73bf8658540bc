"""Describes the network between the ranks of a job by a few numbers, and the compute rates of their devices."""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError

GB = 1e9


@dataclass(frozen=True, slots=True)
class Link:
    """Describes one rank's share of a network while all ranks use it.

    Attributes:
        bytes_per_s: Rate in one direction.
        latency_s: Latency of one message.
    """

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """Describes nodes with several ranks, fast links inside a node and slower links between nodes.

    Attributes:
        words: The description that the forecast prints.
        ranks_per_node: Ranks on each node.
        inside: The links inside a node.
        between: The links between nodes.
        vectors_behind_loss: Share of the time of the loss in which embeddings are exchanged at the same time.
        gradients_behind_towers: Share of the time of the towers in which gradients are reduced at the same time. 0 is
            DeepSpeed without `overlap_comm`, its default below ZeRO stage 3.
    """

    words: str
    ranks_per_node: int
    inside: Link
    between: Link
    vectors_behind_loss: float = 0.5
    gradients_behind_towers: float = 0.0

    def nodes(self, ranks: int) -> int:
        """Returns the number of nodes for `ranks` ranks."""
        return -(-ranks // self.ranks_per_node)


# Line rates come from the vendors: NVLink 4 of an H100 has 900 GB/s in both directions together, and a DGX H100 has one
# ConnectX-7 of 400 Gb/s for each GPU (NVIDIA, DGX H100 datasheet). Assumption: long messages reach 0.8 of a line rate.
REACHED = 0.8
_NVLINK = Link(REACHED * 450 * GB, 5e-6)
FABRICS = {
    "ib400": Fabric("8 x H100, 400 Gb/s InfiniBand each", 8, _NVLINK, Link(REACHED * 50 * GB, 10e-6)),
    # One adapter for each node, such as in an AWS p3dn.24xlarge, with TCP.
    "eth100": Fabric("8 x H100, 100 Gb/s Ethernet together", 8, _NVLINK, Link(REACHED * 12.5 / 8 * GB, 50e-6)),
    # Processes of one machine, for runs without GPU: about what `python benchmarks cluster validate` measures.
    "gloo": Fabric("processes on one machine, gloo", 1024, Link(0.8 * GB, 800e-6), Link(0.8 * GB, 800e-6), 0.0),
}


def fabric_of(text: str) -> Fabric:
    """Returns a preset by its name, or the fabric of `RANKS_PER_NODE,INSIDE,BETWEEN`, a rank's share of each in GB/s.

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
            "the ranks of a node, and a rank's GB/s inside a node and between nodes."
        )
    words = f"{ranks:g} ranks a node, {inside:g} GB/s inside, {between:g} between"
    return Fabric(words, int(ranks), Link(inside * GB, 5e-6), Link(between * GB, 10e-6))


# Dense peak rates in FLOP/s (NVIDIA datasheets, SXM): bfloat16 with tensor cores, and float32 without them, which is
# torch's default.
_PEAKS = {
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "B200": (2250e12, 75e12),
}
# Assumption: the share of the peak rate that the towers and the losses reach.
REACHED_FLOPS = 0.4


def device_flops(name: str, *, half: bool) -> float | None:
    """Returns the FLOP/s that a step is expected to reach on a GPU with this name in torch; None if it is unknown.

    `half` is True for bfloat16, and False for float32.
    """
    peaks = next((peaks for known, peaks in _PEAKS.items() if known in name), None)
    return None if peaks is None else REACHED_FLOPS * peaks[0 if half else 1]
