"""The result does not depend on the number of ranks. It is compared with one process that uses the same kernels."""

import itertools
from typing import Any

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from fused_cases import unit
from rank_pool import RankPool
from torch import Tensor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the pool of ranks uses gloo, on the CPU")

# Rows of each rank, and the schedule. More schedules and ranks are compared with the backend chunked, which is faster.
JOBS = (((11, 7), "gather"), ((4, 0, 14), "gather"), ((4, 0, 14), "ring"))
IMAGE, TEXT = unit(18, 16, seed=1), unit(18, 16, seed=2)
IDS = torch.arange(18) % 7
GUIDES = {"guide_image": unit(18, 20, seed=3), "guide_text": unit(18, 20, seed=4)}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"ids": IDS},
    {"mining": Mining(threshold=0.2)},
    {"mining": Mining(top_k=3, treatment="ignore"), "ids": IDS},
    {"objective": "mil_nce", "ids": IDS, "mining": Mining("joint", 0.2)},
    {"objective": "sigmoid", "bias": -2.0, "ids": IDS},
    {"objective": "soft", **GUIDES},
]


def job(group: Any, rank: int, payload: dict[str, Any]) -> list[list[Tensor]]:
    rows, answers = payload["rows"], []
    for setting in payload["settings"]:
        image, text = (t[rows].clone().requires_grad_() for t in (IMAGE, TEXT))
        scale = torch.tensor(payload["scale"], requires_grad=True)
        local = {key: value[rows] if isinstance(value, Tensor) else value for key, value in setting.items()}
        result = contrastive_loss(image, text, scale, group=group, backend="fused", **local)
        result.loss.backward()
        seen = torch.stack([result.loss.detach(), result.positives, *result.recall_at_1])
        answers.append([seen, image.grad, text.grad, scale.grad])
    return answers


@pytest.mark.parametrize(("counts", "schedule"), JOBS, ids=str)
def test_the_fused_loss_does_not_depend_on_the_ranks(ranks: RankPool, counts, schedule):
    require_equal_results(ranks, counts, [{**setting, "schedule": schedule} for setting in SETTINGS], 20.0)


def test_all_ranks_use_a_running_maximum_if_one_needs_it(ranks: RankPool):
    # At scale 100 one shift does not fit the own pairs of these random vectors.
    require_equal_results(ranks, (4, 0, 14), [{}, {"objective": "mil_nce", "ids": IDS}], 100.0)


PATCHES, LINES = unit(18 * 20, 16, seed=5).view(18, 20, 16), unit(29, 16, seed=6)
OWNER = (torch.arange(29) * 7) % 18
REGION_SETTINGS: list[dict[str, Any]] = [
    {},
    {"mining": Mining("text", 0.2), "patch_mask": torch.arange(18 * 20).view(18, 20) % 3 > 0},
    {"mining": Mining("text", top_k=3, treatment="ignore")},
    {"scope": "image"},
]


def local_job(group: Any, rank: int, payload: dict[str, Any]) -> list[list[Tensor]]:
    rows, answers = payload["rows"], []
    mine = (rows.start <= OWNER) & (rows.stop > OWNER)
    for setting in payload["settings"]:
        patches, lines = (t.clone().requires_grad_() for t in (PATCHES[rows], LINES[mine]))
        scale = torch.tensor(payload["scale"], requires_grad=True)
        local = {key: value[rows] if isinstance(value, Tensor) else value for key, value in setting.items()}
        owner = OWNER[mine] - rows.start
        result = region_contrastive_loss(patches, lines, owner, scale, group=group, backend="fused", **local)
        result.loss.backward()
        seen = torch.stack([result.loss.detach(), result.positives, *result.recall_at_1])
        order = torch.arange(29)[mine]
        answers.append([seen, patches.grad, torch.zeros(29, 16).index_copy_(0, order, lines.grad), scale.grad])
    return answers


@pytest.mark.parametrize(("counts", "schedule"), JOBS, ids=str)
def test_the_fused_local_loss_does_not_depend_on_the_ranks(ranks: RankPool, counts, schedule):
    settings = [{**setting, "schedule": schedule} for setting in REGION_SETTINGS]
    slices = rows_of(counts)
    alone = local_job(None, 0, {"rows": slice(0, 18), "settings": settings, "scale": 20.0})
    many = ranks.run(local_job, [{"rows": part, "settings": settings, "scale": 20.0} for part in slices])
    for number, (seen, patches, lines, by_scale) in enumerate(alone):
        answers = [answer[number] for answer in many]
        assert all(torch.equal(answer[0], answers[0][0]) for answer in answers), settings[number]
        torch.testing.assert_close(answers[0][0], seen, rtol=1e-5, atol=1e-5)
        size = len(counts)
        torch.testing.assert_close(torch.cat([a[1] for a in answers]) / size, patches, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(sum(a[2] for a in answers) / size, lines, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(torch.stack([a[3] for a in answers]).mean(0), by_scale, rtol=1e-4, atol=2e-5)


def rows_of(counts: tuple[int, ...]) -> list[slice]:
    ends = list(itertools.accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def require_equal_results(
    ranks: RankPool, counts: tuple[int, ...], settings: list[dict[str, Any]], scale: float
) -> None:
    rows = rows_of(counts)
    alone = job(None, 0, {"rows": slice(0, 18), "settings": settings, "scale": scale})
    many = ranks.run(job, [{"rows": part, "settings": settings, "scale": scale} for part in rows])
    for number, (seen, image, text, by_scale) in enumerate(alone):
        answers = [answer[number] for answer in many]
        assert all(torch.equal(answer[0], answers[0][0]) for answer in answers), settings[number]
        torch.testing.assert_close(answers[0][0], seen, rtol=1e-5, atol=1e-5)
        size = len(counts)
        torch.testing.assert_close(torch.cat([a[1] for a in answers]) / size, image, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(torch.cat([a[2] for a in answers]) / size, text, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(torch.stack([a[3] for a in answers]).mean(0), by_scale, rtol=1e-4, atol=2e-5)
