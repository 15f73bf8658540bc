"""Divides a global batch over the ranks, and the samples of a rank into passes of `micro_batch` samples.

Of a global batch of `G` samples, rank `r` of `W` ranks takes the rows from `G * r // W` up to, but not including,
`G * (r + 1) // W` (decision 18). So a batch can be divided over any number of ranks up to its size, and the shares of
the ranks differ by at most one row. `emocap_shards.plan.rank_slice` computes this split for the data stream. This
module computes only the largest share.
"""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """Holds the number of samples of a rank in a full step, and the number of samples of one pass of the towers.

    If a step needs more than one pass, the towers encode all samples without gradients, and run a second time with
    gradients after the loss is computed. So the loss is always computed for the whole global batch at once.

    Args:
        rows: Number of samples of the rank with the most samples; other ranks have at most one sample fewer.
        micro_batch: Largest number of samples of one pass.
    """

    rows: int
    micro_batch: int

    @property
    def passes(self) -> int:
        """Returns the number of passes in which the towers encode the samples of a rank in one step."""
        return -(-self.rows // self.micro_batch)


def batch_split(global_batch: int, micro_batch: int | None, *, ranks: int) -> BatchSplit:
    """Returns how a full step is divided over the ranks. The result is the same on all ranks.

    >>> batch_split(100, 10, ranks=3)
    BatchSplit(rows=34, micro_batch=10)
    >>> batch_split(100, 10, ranks=3).passes
    4

    Args:
        global_batch: Number of samples of a step over all ranks.
        micro_batch: Largest number of samples of one pass of the towers; None allows all samples of a rank.
        ranks: Number of ranks.

    Raises:
        ConfigError: If a rank would have no sample.
    """
    if ranks > global_batch:
        raise ConfigError(
            f"global_batch={global_batch} leaves some of {ranks} ranks without a sample: "
            f"set global_batch to at least {ranks}, or cluster.ranks={global_batch}."
        )
    # The number of passes follows from the fullest rank, because all ranks must make equally many: each pass of the
    # towers runs collectives under ZeRO stage 3.
    rows = -(-global_batch // ranks)
    return BatchSplit(rows, min(rows, micro_batch or rows))
