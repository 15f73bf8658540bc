import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.errors import ConfigError


@given(st.integers(1, 5000), st.integers(1, 300), st.none() | st.integers(1, 5000))
def test_the_rows_of_all_ranks_hold_the_batch_and_no_rank_has_a_superfluous_row(global_batch, ranks, micro):
    if ranks > global_batch:
        return
    split = batch_split(global_batch, micro, ranks=ranks)
    assert (split.rows - 1) * ranks < global_batch <= split.rows * ranks
    assert (split.passes - 1) * split.micro_batch < split.rows <= split.passes * split.micro_batch


def test_a_rank_makes_one_pass_without_a_micro_batch():
    assert batch_split(100, None, ranks=3).passes == 1


def test_more_ranks_than_samples_are_refused_with_two_remedies():
    with pytest.raises(ConfigError) as caught:
        batch_split(3, None, ranks=4)
    assert str(caught.value) == (
        "global_batch=3 leaves some of 4 ranks without a sample: set global_batch to at least 4, or cluster.ranks=3."
    )
