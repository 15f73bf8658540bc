import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.errors import ConfigError


@given(st.integers(1, 5000), st.integers(1, 300), st.none() | st.integers(1, 5000))
def test_all_ranks_together_have_room_for_the_batch_and_none_a_whole_row_too_many(global_batch, ranks, micro):
    if ranks > global_batch:
        return
    split = batch_split(global_batch, micro, ranks=ranks)
    assert (split.rows - 1) * ranks < global_batch <= split.rows * ranks
    assert (split.passes - 1) * split.micro_batch < split.rows <= split.passes * split.micro_batch


def test_without_a_micro_batch_every_rank_makes_one_pass():
    assert batch_split(100, None, ranks=3).passes == 1


def test_more_ranks_than_samples_are_refused_with_both_cures():
    with pytest.raises(ConfigError) as caught:
        batch_split(3, None, ranks=4)
    assert str(caught.value) == (
        "global_batch=3 leaves some of 4 ranks without a sample: set global_batch to at least 4, or cluster.ranks=3."
    )
