"""One small collective for the numbers of all ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from emocap_pretrain.ranks.group import RankGroup


def gathered(world: RankGroup, values: Sequence[float]) -> list[list[float]]:
    """The values of every rank, in rank order, on every rank; all give equally many. A collective."""
    if world.process_group is None:
        return [list(values)]
    own = torch.tensor(values, dtype=torch.float64, device=world.device)
    rows = [torch.empty_like(own) for _ in range(world.world_size)]
    dist.all_gather(rows, own, group=world.process_group)
    return torch.stack(rows).tolist()
