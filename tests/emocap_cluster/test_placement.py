import pytest
from emocap_cluster.placement import Node, ResourceRequest, place
from hypothesis import given
from hypothesis import strategies as st

nodes_of_a_cluster = st.lists(
    st.builds(
        Node,
        id=st.uuids().map(str),
        address=st.just("10.0.0.1"),
        cpus=st.integers(0, 9),
        gpus=st.integers(0, 8),
        alive=st.booleans(),
        draining=st.booleans(),
    ),
    max_size=6,
)


def nodes(*gpus: int, cpus: int = 16) -> list[Node]:
    return [Node(str(number), f"10.0.0.{number}", cpus, each) for number, each in enumerate(gpus)]


def request(
    ranks: int | None = None, *, on_gpu: bool = True, most: int = 1000, spread: bool = False
) -> ResourceRequest:
    return ResourceRequest(ranks, least=1, most=most, on_gpu=on_gpu, spread=spread)


def test_by_default_every_gpu_of_an_uneven_cluster_has_a_rank() -> None:
    placed = place(nodes(8, 4, 0), request())
    assert placed.ranks == 12
    assert placed.held == {"GPU": 1.0}
    assert placed.strategy == "PACK"


def test_there_are_never_more_ranks_than_samples_in_a_batch() -> None:
    assert place(nodes(8, 4), request(most=10)).ranks == 10
    assert place(nodes(8, 4), request(12, most=10)).ranks == 10


def test_dead_and_draining_nodes_take_no_rank() -> None:
    there = [Node("a", "a", 8, 8), Node("b", "b", 8, 4, alive=False), Node("c", "c", 8, 2, draining=True)]
    assert place(there, request()).ranks == 8


def test_a_number_that_is_asked_for_is_kept_as_far_as_there_are_gpus() -> None:
    assert place(nodes(8, 4), request(6)).ranks == 6
    assert place(nodes(2, 1), request(6)).ranks == 3


@pytest.mark.parametrize(("hosts", "ranks"), [(1, 2), (2, 2), (5, 5)])
def test_without_gpus_each_node_has_a_rank_and_the_job_two_at_least(hosts: int, ranks: int) -> None:
    placed = place(nodes(*[0] * hosts), request(on_gpu=False))
    assert placed.ranks == ranks
    assert placed.strategy == "SPREAD"


def test_without_any_node_there_is_no_rank() -> None:
    assert place([], request(on_gpu=False)).ranks == 0
    assert place([], request(4, on_gpu=False)).ranks == 0


def test_ranks_that_take_turns_between_nodes_are_spread() -> None:
    assert place(nodes(8, 8), request(4, spread=True)).strategy == "SPREAD"


@given(nodes_of_a_cluster, st.one_of(st.none(), st.integers(1, 40)), st.booleans(), st.integers(1, 40))
def test_what_the_ranks_hold_is_there(there: list[Node], ranks: int | None, on_gpu: bool, most: int) -> None:
    placed = place(there, request(ranks, on_gpu=on_gpu, most=most))
    good = [node for node in there if node.alive and not node.draining]
    assert 0 <= placed.ranks <= min(most, ranks or most)
    if on_gpu:
        assert placed.ranks <= sum(node.gpus for node in good)
    elif placed.ranks:
        # Ray counts in ten-thousandths; each rank is on one node.
        units = round(placed.share * 10_000)
        assert units <= 10_000
        assert sum(node.cpus * 10_000 // units for node in good) >= placed.ranks
