"""Describes the network of a job by rates and latencies, and GPUs by FLOP/s, for the forecast of `--dry-run`.

The forecast is a model with assumed rates; docs/cluster-benchmarks.md compares it with measured steps. `workload.py`
counts the operations and the received bytes of a rank, `step.py` computes the time of a step from these counts, and
`outlook.py` formats the forecast.
"""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError

GB = 1e9


@dataclass(frozen=True, slots=True)
class Link:
    """Describes the connection of one rank to a network that all ranks use at the same time.

    A message of n bytes takes `latency_s + n / bytes_per_s` seconds.

    Attributes:
        bytes_per_s: Bytes per second that the rank can send, and that it can receive at the same time. If several
            ranks share an adapter, this is the share of one rank.
        latency_s: Latency of one message.
    """

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """Describes the network of nodes with several ranks each.

    Attributes:
        words: The description that the forecast prints.
        ranks_per_node: Number of ranks on each node.
        inside: The network inside a node.
        between: The network between nodes.
        vectors_behind_loss: Fraction of the time of the loss, in [0, 1], that overlaps with the exchange of the
            embeddings. Only the part of the exchange that does not overlap with the loss delays a step.
    """

    words: str
    ranks_per_node: int
    inside: Link
    between: Link
    vectors_behind_loss: float = 0.5

    def nodes(self, ranks: int) -> int:
        """Returns the number of nodes that `ranks` ranks need."""
        return -(-ranks // self.ranks_per_node)


# The line rates are those of the vendors: NVLink 4 of an H100 has 900 GB/s in both directions together, and a DGX H100
# has one ConnectX-7 of 400 Gb/s for each GPU (NVIDIA, DGX H100 datasheet). Long messages are assumed to reach 0.8 of a
# line rate.
REACHED = 0.8
_NVLINK = Link(REACHED * 450 * GB, 5e-6)
FABRICS = {
    "ib400": Fabric("8 x H100, 400 Gb/s InfiniBand each", 8, _NVLINK, Link(REACHED * 50 * GB, 10e-6)),
    # Each node has one adapter, such as an AWS p3dn.24xlarge, and uses TCP.
    "eth100": Fabric("8 x H100, 100 Gb/s Ethernet together", 8, _NVLINK, Link(REACHED * 12.5 / 8 * GB, 50e-6)),
    # All ranks are processes of one machine without GPUs. `python benchmarks cluster validate` measures similar values.
    "gloo": Fabric("processes on one machine, gloo", 1024, Link(0.8 * GB, 800e-6), Link(0.8 * GB, 800e-6), 0.0),
}


def fabric_of(text: str) -> Fabric:
    """Returns the network that a command line option describes.

    Args:
        text: The name of a preset in `FABRICS`, or three numbers `RANKS_PER_NODE,INSIDE,BETWEEN`. INSIDE and BETWEEN
            are the rates in GB/s at which a rank receives from its own node and from other nodes.

    Raises:
        ConfigError: If the text is neither a preset nor three such numbers.
    """
    if text in FABRICS:
        return FABRICS[text]
    # Wrong words become zeros, which the check below refuses together with wrong numbers.
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
    # The given rates are taken as they are, without `REACHED`. The latencies are those of "ib400".
    return Fabric(words, int(ranks), Link(inside * GB, 5e-6), Link(between * GB, 10e-6))


# Dense peak rates in FLOP/s (NVIDIA datasheets, SXM): bfloat16 with tensor cores, and float32 without them, as torch
# computes float32 by default.
_PEAKS = {
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "B200": (2250e12, 75e12),
}
# The assumed share of the peak rate that the towers and the losses reach.
REACHED_FLOPS = 0.4


def device_flops(name: str, *, half: bool) -> float | None:
    """Returns the FLOP/s that a step is expected to reach on a GPU; None if this type of GPU is unknown.

    Args:
        name: The name that torch gives the GPU, such as "NVIDIA H100 80GB HBM3".
        half: True for bfloat16, False for float32.
    """
    peaks = next((peaks for known, peaks in _PEAKS.items() if known in name), None)
    return None if peaks is None else REACHED_FLOPS * peaks[0 if half else 1]
