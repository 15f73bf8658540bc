from collections.abc import Iterator

import pytest
import torch
from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # The tensors here are tiny, so a second thread would only spin.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
