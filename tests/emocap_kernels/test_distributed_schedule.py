"""Communication plans, for all ranks of any number of ranks at once."""

from emocap_kernels.distributed.ranks import Partition, Ranks, ranks_per_node
from emocap_kernels.distributed.schedule import (
    MAX_STAGES,
    MIN_STAGE_ROWS,
    CommunicationPlan,
    plan_communication,
    plan_stages,
)
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draws arguments of `plan_stages`: the number of ranks, that of each machine, and `pieces`.

    `pieces` is the largest number of stages for the rows of the own machine.
    """
    node, nodes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return node * nodes, node, draw(st.integers(0, 8))


@given(layouts())
def test_every_rank_gets_the_rows_of_every_rank_once_and_its_own_first(layout):
    size, node, pieces = layout
    for rank in range(size):
        stages = plan_stages(rank, size, node=node, pieces=pieces)
        assert stages[0].ranks == (rank,)
        assert sorted(source for stage in stages for source in stage.ranks) == list(range(size))


@given(layouts())
def test_every_message_that_is_sent_is_received_in_the_same_hop(layout):
    size, node, pieces = layout
    stages = [plan_stages(rank, size, node=node, pieces=pieces) for rank in range(size)]
    assert len({tuple(len(stage.hops) for stage in mine) for mine in stages}) == 1
    for number, stage in enumerate(stages[0]):
        for hop in range(len(stage.hops)):
            hops = [mine[number].hops[hop] for mine in stages]
            sent = sorted((rank, peer, rows) for rank in range(size) for peer, rows in hops[rank].sends)
            received = sorted((peer, rank, rows) for rank in range(size) for peer, rows in hops[rank].receives)
            assert sent == received


@given(layouts())
def test_a_rank_sends_only_rows_that_it_holds(layout):
    size, node, pieces = layout
    for rank in range(size):
        for stage in plan_stages(rank, size, node=node, pieces=pieces):
            held = {rank}
            for hop in stage.hops:
                assert {rows for _, rows in hop.sends} <= held
                held |= {rows for _, rows in hop.receives}
            assert set(stage.ranks) <= held


@given(layouts())
def test_every_row_is_sent_to_each_other_machine_once(layout):
    size, node, pieces = layout
    crossings = [
        (source, rank // node)
        for rank in range(size)
        for stage in plan_stages(rank, size, node=node, pieces=pieces)
        for hop in stage.hops
        for peer, source in hop.receives
        if peer // node != rank // node
    ]
    assert len(crossings) == len(set(crossings)) == size * (size // node - 1)


def plan(schedule, size: int, node: int, rows: int) -> CommunicationPlan:
    return plan_communication(schedule, Partition((rows,) * size, 1), Ranks(None, None, size, 1, node))


def test_the_default_is_hierarchical_from_two_machines_on():
    assert plan("auto", 8, 4, 10) == plan("hierarchical", 8, 4, 10) != plan("gather", 8, 4, 10)
    assert plan("auto", 8, 8, 10) == plan("gather", 8, 8, 10)


def test_a_large_batch_arrives_in_several_stages_and_a_small_one_in_one():
    assert len(plan("gather", 8, 8, 16).stages) == 2
    assert len(plan("gather", 8, 8, 10 * MIN_STAGE_ROWS).stages) == 1 + MAX_STAGES


def test_a_ring_keeps_nothing_and_receives_one_rank_at_a_time():
    ring = plan("ring", 5, 5, 7)
    assert not ring.keeps_rows
    assert [stage.ranks for stage in ring.stages] == [(1,), (2,), (3,), (4,), (0,)]


def test_machines_matter_only_if_they_hold_equally_many_ranks_in_order():
    assert ranks_per_node((7, 7, 7, 7)) == 4
    assert ranks_per_node((7, 7, 3, 3)) == 2
    assert ranks_per_node((1, 2, 3)) == 1
    assert ranks_per_node((7, 7, 3)) == 3
    assert ranks_per_node((7, 3, 7, 3)) == 4
    assert ranks_per_node((7, 3, 3, 7)) == 4
    assert ranks_per_node((7, 7, 3, 3, 7, 7)) == 6
