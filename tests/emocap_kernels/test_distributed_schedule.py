"""The plan of a journey, for every rank of any number of ranks at once."""

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
    node, nodes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return node * nodes, node, draw(st.integers(0, 8))


@given(layouts())
def test_every_rank_meets_the_rows_of_every_rank_once_and_its_own_first(layout):
    size, node, pieces = layout
    for rank in range(size):
        legs = plan_stages(rank, size, node=node, pieces=pieces)
        assert legs[0].ranks == (rank,)
        assert sorted(source for leg in legs for source in leg.ranks) == list(range(size))


@given(layouts())
def test_every_message_that_is_sent_is_received_in_the_same_hop(layout):
    size, node, pieces = layout
    legs = [plan_stages(rank, size, node=node, pieces=pieces) for rank in range(size)]
    assert len({tuple(len(leg.hops) for leg in mine) for mine in legs}) == 1
    for number, leg in enumerate(legs[0]):
        for hop in range(len(leg.hops)):
            hops = [mine[number].hops[hop] for mine in legs]
            sent = sorted((rank, peer, rows) for rank in range(size) for peer, rows in hops[rank].sends)
            received = sorted((peer, rank, rows) for rank in range(size) for peer, rows in hops[rank].receives)
            assert sent == received


@given(layouts())
def test_a_rank_passes_on_only_rows_that_it_holds(layout):
    size, node, pieces = layout
    for rank in range(size):
        for leg in plan_stages(rank, size, node=node, pieces=pieces):
            held = {rank}
            for hop in leg.hops:
                assert {rows for _, rows in hop.sends} <= held
                held |= {rows for _, rows in hop.receives}
            assert set(leg.ranks) <= held


@given(layouts())
def test_between_machines_every_row_crosses_once(layout):
    size, node, pieces = layout
    crossings = [
        (source, rank // node)
        for rank in range(size)
        for leg in plan_stages(rank, size, node=node, pieces=pieces)
        for hop in leg.hops
        for peer, source in hop.receives
        if peer // node != rank // node
    ]
    assert len(crossings) == len(set(crossings)) == size * (size // node - 1)


def route(schedule, size: int, node: int, rows: int) -> CommunicationPlan:
    return plan_communication(schedule, Partition((rows,) * size, 1), Ranks(None, None, size, 1, node))


def test_the_default_is_hierarchical_from_two_machines_on():
    assert route("auto", 8, 4, 10) == route("hierarchical", 8, 4, 10) != route("gather", 8, 4, 10)
    assert route("auto", 8, 8, 10) == route("gather", 8, 8, 10)


def test_a_large_batch_arrives_in_pieces_and_a_small_one_at_once():
    assert len(route("gather", 8, 8, 16).stages) == 2
    assert len(route("gather", 8, 8, 10 * MIN_STAGE_ROWS).stages) == 1 + MAX_STAGES


def test_a_ring_keeps_nothing_and_brings_one_rank_at_a_time():
    ring = route("ring", 5, 5, 7)
    assert not ring.keeps_rows
    assert [leg.ranks for leg in ring.stages] == [(1,), (2,), (3,), (4,), (0,)]


def test_machines_count_only_if_they_hold_equally_many_ranks_in_order():
    assert ranks_per_node((7, 7, 7, 7)) == 4
    assert ranks_per_node((7, 7, 3, 3)) == 2
    assert ranks_per_node((1, 2, 3)) == 1
    assert ranks_per_node((7, 7, 3)) == 3
    assert ranks_per_node((7, 3, 7, 3)) == 4
    assert ranks_per_node((7, 3, 3, 7)) == 4
    assert ranks_per_node((7, 7, 3, 3, 7, 7)) == 6
