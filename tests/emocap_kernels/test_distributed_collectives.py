"""The bytes that ranks receive, compared with the formulas of docs/method.md, section 6."""

from typing import Any

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from emocap_kernels.distributed.collectives import count_received_bytes
from rank_pool import RankPool
from torch import Tensor
from torch.nn.functional import normalize

B, D = 24, 16
BF16, F32 = 2, 4
GUIDE_WIDTH = 10
TEACHER = {"objective": "soft", "guide": GUIDE_WIDTH}


def rows_of(size: int, rank: int) -> slice:
    return slice(rank * B // size, (rank + 1) * B // size)


def unit(*shape: int, seed: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def global_job(group: Any, rank: int, settings: dict[str, Any]) -> tuple[int, int, int]:
    """Returns the bytes of vectors received in forward and in backward, and of numbers in both."""
    settings = dict(settings)
    rows, dtype = rows_of(group.size(), rank), settings.pop("dtype", torch.bfloat16)
    image, text = (unit(B, D, seed=seed)[rows].to(dtype).requires_grad_() for seed in (1, 2))
    if (width := settings.pop("guide", None)) is not None:
        settings |= {"guide_image": unit(B, width, seed=3)[rows], "guide_text": unit(B, width, seed=4)[rows]}
    with count_received_bytes() as forward:
        loss = contrastive_loss(image, text, torch.tensor(10.0, requires_grad=True), group=group, **settings).loss
    with count_received_bytes() as backward:
        loss.backward()
    return forward["vectors"], backward["vectors"], forward["numbers"] + backward["numbers"]


def received(ranks: RankPool, size: int, **settings: Any) -> tuple[int, int, int]:
    (answer,) = set(ranks.run(global_job, [settings] * size))
    return answer


@pytest.mark.parametrize("schedule", ["gather", "hierarchical"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_step_receives_the_texts_once_and_their_gradient_once(ranks, size, schedule):
    others = B - B // size
    forward, backward, _ = received(ranks, size, schedule=schedule)
    # Together this is 4 B D bytes in bfloat16, minus what this rank has already.
    assert forward == backward == others * D * BF16


@pytest.mark.parametrize("size", [2, 4])
def test_a_ring_receives_the_texts_again_for_their_gradient(ranks, size):
    others = B - B // size
    forward, backward, _ = received(ranks, size, schedule="ring")
    assert (forward, backward) == (others * D * BF16, 2 * others * D * BF16)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"mining": Mining("text", 0.3)}, 0),
        ({"mining": Mining("joint", 0.3)}, 0),
        ({"mining": Mining("image", 0.3)}, D * BF16),
        ({"mining": Mining("consensus", 0.3)}, D * BF16),
        ({"mining": Mining("counterpart", top_k=2)}, D * BF16),
        ({"mining": Mining("text", 0.3), "guide": GUIDE_WIDTH}, GUIDE_WIDTH * F32),
        ({"mining": Mining("counterpart", top_k=2), "guide": GUIDE_WIDTH}, 2 * GUIDE_WIDTH * F32),
        ({"objective": "soft", "guide": GUIDE_WIDTH}, GUIDE_WIDTH * F32),
    ],
    ids=str,
)
def test_guide_features_add_their_bytes_for_each_row(ranks, settings, more):
    others = B - B // 3
    forward, backward, _ = received(ranks, 3, schedule="gather", **settings)
    gradient_in_forward = settings.get("objective") == "soft"
    gradient = others * D * BF16
    assert forward == others * (D * BF16 + more) + (gradient if gradient_in_forward else 0)
    assert backward == (0 if gradient_in_forward else gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vectors_and_gradients_are_sent_in_their_own_type(ranks, dtype):
    forward, backward, _ = received(ranks, 2, dtype=dtype)
    assert forward == backward == B // 2 * D * dtype.itemsize


def test_statistics_are_less_than_a_hundred_bytes_for_each_row(ranks):
    *_, few = received(ranks, 4)
    assert few <= 100 * B + 4 * 8 * 64


def local_job(group: Any, rank: int, schedule: str) -> tuple[int, int]:
    """Returns the bytes of vectors received in forward and in backward of the local loss."""
    rows = rows_of(group.size(), rank)
    patches = unit(B, 3, D, seed=1)[rows].bfloat16().requires_grad_()
    # Rank r has r + 1 sentences for each image.
    owner = torch.arange(len(patches)).repeat(rank + 1)
    sentences = unit(len(owner), D, seed=rank).bfloat16().requires_grad_()
    with count_received_bytes() as forward:
        loss = region_contrastive_loss(patches, sentences, owner, 10.0, group=group, schedule=schedule).loss
    with count_received_bytes() as backward:
        loss.backward()
    return forward["vectors"], backward["vectors"]


def test_the_local_loss_sends_only_sentences_and_pads_none(ranks):
    size = 3
    each = [B // size * (rank + 1) for rank in range(size)]
    for rank, (forward, backward) in enumerate(ranks.run(local_job, ["gather"] * size)):
        assert forward == (sum(each) - each[rank]) * D * BF16
        assert backward == (size - 1) * each[rank] * D * BF16


def within_job(group: Any, rank: int, payload: None) -> tuple[int, int]:
    """Returns the bytes of vectors and of numbers received in a step of scope `image`."""
    patches, sentences = unit(2, 3, D, seed=1).requires_grad_(), unit(4, D, seed=2).requires_grad_()
    with count_received_bytes() as traffic:
        region_contrastive_loss(
            patches, sentences, torch.tensor([0, 0, 1, 1]), 10.0, group=group, scope="image"
        ).loss.backward()
    return traffic["vectors"], traffic["numbers"]


def test_within_an_image_no_vector_is_sent(ranks):
    for vectors, numbers in ranks.run(within_job, [None] * 2):
        assert vectors == 0
        assert numbers < 500


def crossing_job(group: Any, rank: int, schedule: str) -> int:
    """Returns the bytes that this rank receives from the other machine in a step."""
    from emocap_kernels.distributed import collectives

    crossed = 0
    original = collectives.dist.P2POp

    def watched(operation: Any, tensor: Tensor, **settings: Any) -> Any:
        nonlocal crossed
        if operation is collectives.dist.irecv and settings["group_peer"] // 2 != rank // 2:
            crossed += tensor.nbytes
        return original(operation, tensor, **settings)

    collectives.dist.P2POp = watched
    try:
        global_job(group, rank, {"schedule": schedule})
    finally:
        collectives.dist.P2POp = original
    return crossed


def test_a_row_is_sent_between_machines_once_for_all_ranks_there(ranks):
    direct, passed_on = (ranks.run(crossing_job, [schedule] * 4)[0] for schedule in ("gather", "hierarchical"))
    assert direct == 2 * (B // 2) * D * BF16
    assert passed_on == direct // 2
