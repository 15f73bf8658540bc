from emocap_cluster.board import BoardState
from emocap_cluster.placement import Node, ResourceRequest, place
from emocap_cluster.supervise import drains, growth

WISH = ResourceRequest(None, least=1, most=64, on_gpu=True)
ONE, TWO = Node("a", "a", 8, 8), Node("b", "b", 8, 4)
RUNNING = place([ONE], WISH)


def test_a_job_grows_once_a_checkpoint_is_committed_and_not_before() -> None:
    assert growth(BoardState(), [ONE, TWO], RUNNING, WISH) == 0
    assert growth(BoardState(commits=1), [ONE, TWO], RUNNING, WISH) == 4
    assert growth(BoardState(commits=1), [ONE], RUNNING, WISH) == 0


def test_a_job_still_grows_after_ray_has_restarted_the_process_of_its_board() -> None:
    before = BoardState(nodes={0: "a", 1: "a"}, hosts={0: "h"}, commits=2)
    after = BoardState(nodes={1: "b"}).merged_with(before)
    assert (after.nodes, after.hosts) == ({0: "a", 1: "b"}, {0: "h"})
    assert growth(after, [ONE, TWO], RUNNING, WISH) == 4


def test_a_job_with_all_the_ranks_that_it_asked_for_does_not_grow() -> None:
    request = ResourceRequest(8, least=1, most=64, on_gpu=True)
    assert growth(BoardState(commits=1), [ONE, TWO], place([ONE], request), request) == 0


def test_only_a_node_with_a_rank_on_it_is_left_when_it_drains() -> None:
    going = Node("b", "b", 8, 4, draining=True)
    assert not drains(BoardState(nodes={0: "a"}), [ONE, going])
    assert drains(BoardState(nodes={0: "a", 8: "b"}), [ONE, going])
