"""Defines the numbers that identify a process among the ranks of a job.

`RankInfo` is a protocol that two types implement. `Rank` is the type of this package. `emocap_cluster` has a type of
its own, because that package does not import this one.
"""

from dataclasses import dataclass
from typing import Protocol


class RankInfo(Protocol):
    """Identifies this process among the ranks of the job.

    Attributes:
        rank: Number of this rank, from 0 to `world_size` - 1.
        world_size: Number of ranks of the job.
        local_rank: Number of this rank among the ranks on its host, from 0. Work that is needed once on each host is
            done by the rank whose `local_rank` is 0.
        local_world_size: Number of ranks on this host, which share its cores and its memory.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def local_rank(self) -> int: ...

    @property
    def local_world_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rank:
    """Implements `RankInfo`. The default values are those of a job with a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
