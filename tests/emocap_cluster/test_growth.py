from emocap_cluster.board import News
from emocap_cluster.placement import Node, Wish, place
from emocap_cluster.supervise import drains, growth

WISH = Wish(None, least=1, most=64, on_gpu=True)
ONE, TWO = Node("a", "a", 8, 8), Node("b", "b", 8, 4)
RUNNING = place([ONE], WISH)


def test_a_job_grows_once_a_checkpoint_stands_and_not_before() -> None:
    assert growth(News(), [ONE, TWO], RUNNING, WISH) == 0
    assert growth(News(commits=1), [ONE, TWO], RUNNING, WISH) == 4
    assert growth(News(commits=1), [ONE], RUNNING, WISH) == 0


def test_a_job_with_all_the_ranks_that_it_asked_for_does_not_grow() -> None:
    wish = Wish(8, least=1, most=64, on_gpu=True)
    assert growth(News(commits=1), [ONE, TWO], place([ONE], wish), wish) == 0


def test_only_a_node_with_a_rank_on_it_is_left_when_it_drains() -> None:
    going = Node("b", "b", 8, 4, draining=True)
    assert not drains(News(nodes={0: "a"}), [ONE, going])
    assert drains(News(nodes={0: "a", 8: "b"}), [ONE, going])
