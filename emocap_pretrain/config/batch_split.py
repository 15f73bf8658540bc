"""Divides a global batch over the ranks, and the samples of a rank into passes of `micro_batch` samples."""

from dataclasses import dataclass

from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """Holds the number of samples of a rank in a full step, and the number of samples of one pass of the towers.

    With more than one pass, the representations are cached and the towers run a second time. The loss still sees the
    whole global batch at once.

    Args:
        rows: Number of samples of the rank with the most samples; other ranks have at most one sample fewer.
        micro_batch: Largest number of samples of one pass.
    """

    rows: int
    micro_batch: int

    @property
    def passes(self) -> int:
        """Returns the number of passes in which the towers encode the samples of a step."""
        return -(-self.rows // self.micro_batch)


def batch_split(global_batch: int, micro_batch: int | None, *, ranks: int) -> BatchSplit:
    """Returns how a full step is divided over the ranks.

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
    rows = -(-global_batch // ranks)
    return BatchSplit(rows, min(rows, micro_batch or rows))
