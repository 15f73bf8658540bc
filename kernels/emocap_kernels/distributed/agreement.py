"""What every rank says of its inputs before a loss begins: a refusal on one rank is an error on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emocap_kernels.distributed.ranks import Ranks
from emocap_kernels.errors import KernelError, RanksDisagreeError

# How many facts the ranks tell each other at most; a fixed number, so that a rank without facts can answer.
MOST_FACTS = 18


def agreed(
    ranks: Ranks, describe: Callable[[], Mapping[str, int]], *, alike: tuple[str, ...]
) -> list[Mapping[str, int]]:
    """What every rank says of its inputs, in rank order; the processes talk, no device is waited for.

    Args:
        ranks: Who takes part.
        describe: Checks the local inputs and says the facts, the same keys on every rank.
        alike: The facts in which all ranks must agree.

    Raises:
        RanksDisagreeError: If a rank refused its inputs, or two ranks differ in one of `alike`.
    """
    if ranks.size == 1:
        return [describe()]
    refusal: KernelError | None = None
    facts: Mapping[str, int] = {}
    try:
        facts = describe()
    except KernelError as error:
        refusal = error
    # One exchange for both: a rank that refuses sends zeros in the place of its facts.
    numbers = [int(refusal is not None), *facts.values()]
    table = ranks.exchanged(numbers + [0] * (MOST_FACTS + 1 - len(numbers)))
    if refusal is not None:
        raise refusal
    refused = [str(rank) for rank, row in enumerate(table) if row[0]]
    if refused:
        raise RanksDisagreeError(f"rank {', '.join(refused)} refused its inputs; its own error says why.")
    said = [dict(zip(facts, row[1:], strict=False)) for row in table]
    for name in alike:
        _require_alike(name, [row[name] for row in said])
    return list(said)


def _require_alike(name: str, values: list[int]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise RanksDisagreeError(
                f"{name} is {value} on rank {rank} and {values[0]} on rank 0; all ranks of a group must agree."
            )
