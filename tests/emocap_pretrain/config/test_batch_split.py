import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.batch_split import micro_batch
from emocap_pretrain.config.schema import Config, Data
from emocap_pretrain.errors import ConfigError

sizes = st.integers(1, 5000)
ranks_of_a_job = st.integers(1, 300)


def config(global_batch: int, micro: int | None = None) -> Config:
    return Config(name="t", url="/r", steps=1, global_batch=global_batch, micro_batch=micro, data=Data(url="/d"))


def told(pattern: str, refusal: ConfigError) -> int:
    found = re.search(pattern, str(refusal))
    assert found
    return int(found[1])


@given(sizes, ranks_of_a_job)
def test_without_a_micro_batch_every_rank_has_an_equal_share_or_the_nearest_works(global_batch, ranks):
    try:
        assert micro_batch(config(global_batch), ranks) * ranks == global_batch
    except ConfigError as refusal:
        assert global_batch % ranks
        nearest = told(r"the nearest that does is (\d+)\.$", refusal)
        assert micro_batch(config(nearest), ranks) * ranks == nearest
        assert abs(nearest - global_batch) <= max(ranks / 2, ranks - global_batch)


@given(sizes, ranks_of_a_job, st.integers(1, 200))
def test_with_a_micro_batch_the_product_is_the_global_batch_or_the_cure_works(global_batch, ranks, micro):
    try:
        assert micro_batch(config(global_batch, micro), ranks) == micro
        assert micro * ranks == global_batch
    except ConfigError as refusal:
        assert micro * ranks != global_batch
        cure = told(r"set global_batch=(\d+)", refusal)
        assert micro_batch(config(cure, micro), ranks) == micro


@given(st.integers(1, 200), ranks_of_a_job, st.integers(1, 200))
def test_a_micro_batch_that_would_keep_the_global_batch_is_offered(share, ranks, micro):
    global_batch = share * ranks
    if micro == share:
        assert micro_batch(config(global_batch, micro), ranks) == share
    else:
        with pytest.raises(ConfigError) as caught:
            micro_batch(config(global_batch, micro), ranks)
        assert micro_batch(config(global_batch, told(r"or micro_batch=(\d+)\.$", caught.value)), ranks) == share


def test_the_refusal_says_why_a_batch_is_not_accumulated():
    with pytest.raises(ConfigError) as caught:
        micro_batch(config(100, 32), 2)
    assert str(caught.value) == (
        "global_batch=100 is not ranks x micro_batch = 2 x 32; a contrastive batch is never accumulated, "
        "so set global_batch=64 or micro_batch=50."
    )
