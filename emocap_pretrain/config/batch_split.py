"""The batch algebra: every rank has an even share of `global_batch`, in as many passes as `micro_batch` asks."""

from dataclasses import dataclass

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """A full step: `rows` of the rank that has most (others have at most one fewer), in `passes` of `micro_batch`.

    With more than one pass the representations are cached and the encoders replayed; the loss still sees the whole
    global batch at once.
    """

    rows: int
    micro_batch: int

    @property
    def passes(self) -> int:
        return -(-self.rows // self.micro_batch)


def batch_split(config: Config, ranks: int) -> BatchSplit:
    """How a full step is split over so many ranks.

    Raises:
        ConfigError: If some rank would have no sample.
    """
    if ranks > config.global_batch:
        raise ConfigError(
            f"global_batch={config.global_batch} leaves some of {ranks} ranks without a sample: "
            f"set global_batch to at least {ranks}, or cluster.ranks={config.global_batch}."
        )
    rows = -(-config.global_batch // ranks)
    return BatchSplit(rows, min(rows, config.micro_batch or rows))
