"""Says which rank of the job a process is."""

from dataclasses import dataclass
from typing import Protocol


class RankInfo(Protocol):
    """This process among all ranks of the job.

    Attributes:
        rank: Its number, from 0 to `world_size` - 1.
        world_size: Ranks of the job.
        local_rank: Its number on its host.
        local_world_size: Ranks on its host.
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
    """A `RankInfo` as a value; by default a process alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
