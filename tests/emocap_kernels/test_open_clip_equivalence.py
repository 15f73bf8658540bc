"""One line replaces the losses of open_clip, with equal values and gradients, in one process and on ranks."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from emocap_kernels import contrastive_loss
from open_clip_loss import losses
from rank_pool import LARGEST
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 12
BACKENDS = ("chunked", "reference")
# Relative and absolute tolerance. In float32 both losses round; the largest gradients here are about 1.
TOLERANCE = {torch.float64: (1e-11, 1e-14), torch.float32: (1e-4, 1e-6)}


def drawn(dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns a batch with a teacher. All tensors are leaves that need a gradient."""
    source = torch.Generator().manual_seed(5)
    names = ("image", "text", "teacher_image", "teacher_text")
    vectors = {name: normalize(torch.randn(ROWS, 16, generator=source, dtype=torch.float64), dim=-1) for name in names}
    numbers = {"scale": torch.tensor(14.0), "bias": torch.tensor(-3.0)}
    return {name: value.to(dtype).requires_grad_() for name, value in {**vectors, **numbers}.items()}


def gradients(loss: Tensor, tensors: dict[str, Tensor], *names: str) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [tensors[name] for name in names]))


def require_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    rtol, atol = TOLERANCE[expected[0].dtype]
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_infonce_is_the_loss_of_clip(dtype, backend):
    t = drawn(dtype)
    mine = contrastive_loss(t["image"], t["text"], t["scale"], backend=backend).loss
    theirs = losses.ClipLoss()(t["image"], t["text"], t["scale"])
    wanted = ("image", "text", "scale")
    require_equal([mine, *gradients(mine, t, *wanted)], [theirs, *gradients(theirs, t, *wanted)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sigmoid_is_the_loss_of_siglip(dtype, backend):
    t = drawn(dtype)
    given = t["image"], t["text"], t["scale"]
    mine = contrastive_loss(*given, objective="sigmoid", bias=t["bias"], backend=backend).loss
    theirs = losses.SigLipLoss()(*given, t["bias"])
    wanted = ("image", "text", "scale", "bias")
    require_equal([mine, *gradients(mine, t, *wanted)], [theirs, *gradients(theirs, t, *wanted)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_soft_is_the_distillation_term_less_the_entropy_of_the_teacher(dtype, backend):
    t = drawn(dtype)
    student, teacher = (t["image"], t["text"], t["scale"]), (t["teacher_image"].detach(), t["teacher_text"].detach())
    mine = contrastive_loss(
        *student, objective="soft", guide_image=teacher[0], guide_text=teacher[1], guide_scale=9.0, backend=backend
    ).loss
    _, theirs = losses.DistillClipLoss()(*student, *teacher, 9.0)
    scores = 9.0 * teacher[0] @ teacher[1].T
    entropy = torch.stack([torch.special.entr(each.softmax(1)).sum(1).mean() for each in (scores, scores.T)]).mean()
    wanted = ("image", "text", "scale")
    require_equal([mine + entropy, *gradients(mine, t, *wanted)], [theirs, *gradients(theirs, t, *wanted)])


def ranks_job(group: Any, rank: int, payload: tuple[str, torch.dtype]) -> list[list[Tensor]]:
    """Returns loss and gradients of this rank's rows, by our loss and by that of open_clip.

    open_clip supports only the default group.
    """
    objective, dtype = payload
    assert dist.get_world_size() == dist.get_world_size(group) == LARGEST
    t, wanted = drawn(dtype), ["image", "text", "scale"]
    share = ROWS // LARGEST
    for name in ("image", "text"):
        t[name] = t[name][rank * share :][:share].detach().requires_grad_()
    given = t["image"], t["text"], t["scale"]
    if objective == "infonce":
        mine = contrastive_loss(*given, group=group).loss
        # This is one of its four modes whose gradients are right after a mean over ranks.
        clip = losses.ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=LARGEST)
        theirs = clip(*given)
    else:
        wanted.append("bias")
        mine = contrastive_loss(*given, objective="sigmoid", bias=t["bias"], group=group).loss
        theirs = losses.SigLipLoss(rank=rank, world_size=LARGEST)(*given, t["bias"])
    return [[loss.detach(), *gradients(loss, t, *wanted)] for loss in (mine, theirs)]


def mean_reduced(answers: list[list[Tensor]]) -> list[Tensor]:
    """Returns what DDP computes: means over the ranks of the loss and of the gradients of scale and bias.

    The gradients of the image and text rows are joined over the ranks and divided by the number of ranks.
    """
    loss, image, text, *numbers = (list(each) for each in zip(*answers, strict=True))
    means = [torch.stack(each).mean(0) for each in (loss, *numbers)]
    return [*means, *(torch.cat(each) / len(answers) for each in (image, text))]


@pytest.mark.parametrize("objective", ["infonce", "sigmoid"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_mean_over_ranks_is_that_of_open_clip(ranks, dtype, objective):
    answers = ranks.run(ranks_job, [(objective, dtype)] * LARGEST)
    mine, theirs = (mean_reduced([answer[place] for answer in answers]) for place in (0, 1))
    require_equal(mine, theirs)
