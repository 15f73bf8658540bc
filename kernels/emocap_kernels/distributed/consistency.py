"""Exchanges metadata about the inputs before a loss begins. An error on one rank becomes an error on all ranks.

Without this exchange, a rank with invalid inputs would raise its error while the other ranks wait for its vectors until
the timeout of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emocap_kernels.distributed.ranks import Ranks, all_gather_integers
from emocap_kernels.errors import KernelError, RanksDisagreeError

# Largest number of integers that a rank can describe its inputs with. It is fixed, so that a rank whose inputs are
# invalid can still take part in the exchange.
MAX_FACTS = 18


def exchange_facts(
    ranks: Ranks, describe: Callable[[], Mapping[str, int]], *, may_differ: tuple[str, ...]
) -> list[Mapping[str, int]]:
    """Returns facts about the inputs of every rank, in rank order. A fact is a named integer, such as a size.

    This is a collective: all ranks must call it. It runs on the CPU and waits for no device.

    Args:
        ranks: The ranks that take part.
        describe: Checks the local inputs and returns at most `MAX_FACTS` facts, with the same keys on every rank. It
            raises a KernelError if the inputs are invalid. An error of another class is raised on this rank alone, and
            the other ranks do not learn of it.
        may_differ: Keys of the facts that may differ between ranks. All others must be equal.

    Raises:
        KernelError: The error of `describe`, on the rank that raised it.
        RanksDisagreeError: If another rank's inputs are invalid, or if ranks differ in a fact that must be equal.
    """
    if ranks.group is None or ranks.size == 1:
        return [describe()]
    refusal: KernelError | None = None
    facts: Mapping[str, int] = {}
    try:
        facts = describe()
    except KernelError as error:
        refusal = error
    # One exchange serves both cases: a rank with invalid inputs sends zeros in place of its facts.
    numbers = [int(refusal is not None), *facts.values()]
    numbers += [0] * (MAX_FACTS + 1 - len(numbers))
    table = all_gather_integers(numbers, ranks.group, ranks.cpu_group)
    # From here on all ranks know the whole table, so all of them raise an error or none does.
    if refusal is not None:
        raise refusal
    refused = [str(rank) for rank, row in enumerate(table) if row[0]]
    if refused:
        raise RanksDisagreeError(f"the inputs of rank {', '.join(refused)} are invalid; see the error of that rank.")
    # The names are those of this rank: all ranks describe their inputs in the same order.
    found: list[Mapping[str, int]] = [dict(zip(facts, row[1:], strict=False)) for row in table]
    for name in facts:
        if name not in may_differ:
            _check_equal_on_ranks(name, [row[name] for row in found])
    return found


def _check_equal_on_ranks(name: str, values: list[int]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise RanksDisagreeError(
                f"{name} is {value} on rank {rank} and {values[0]} on rank 0; all ranks of a group must agree."
            )
