"""Divides a global batch over the ranks, and the rows of a rank into passes of `micro_batch`."""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """Holds how many samples a rank has in a full step, and in passes of how many the towers see them.

    With more than one pass the representations are cached and the towers run again; the loss still sees the whole
    global batch at once.

    Args:
        rows: Samples of the rank that has most; the others have at most one fewer.
        micro_batch: Most samples of one pass.
    """

    rows: int
    micro_batch: int

    @property
    def passes(self) -> int:
        """Number of passes over the towers in a step."""
        return -(-self.rows // self.micro_batch)


def batch_split(global_batch: int, micro_batch: int | None, *, ranks: int) -> BatchSplit:
    """Returns how a full step is divided over the ranks.

    Args:
        global_batch: Samples of a step over all ranks.
        micro_batch: Most samples of one pass of the towers; None is all rows of a rank.
        ranks: Number of ranks.

    Raises:
        ConfigError: If some rank would have no sample.
    """
    if ranks > global_batch:
        raise ConfigError(
            f"global_batch={global_batch} leaves some of {ranks} ranks without a sample: "
            f"set global_batch to at least {ranks}, or cluster.ranks={global_batch}."
        )
    rows = -(-global_batch // ranks)
    return BatchSplit(rows, min(rows, micro_batch or rows))
