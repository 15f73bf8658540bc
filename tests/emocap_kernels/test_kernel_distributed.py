"""The result does not depend on the number of ranks: loss and mean-reduced gradients are those of one process."""

import itertools
from typing import Any

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from emocap_kernels.distributed import schedule as communication
from emocap_kernels.errors import RanksDisagreeError, ShapeError
from rank_pool import RankPool
from torch import Tensor
from torch.nn.functional import normalize

COUNTS = ((11,), (6, 5), (0, 11), (11, 0), (4, 0, 7), (1, 9, 1), (3, 2, 5, 1), (0, 10, 0, 1))
SENTENCES = 17


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=-1).to(dtype)


IMAGE, TEXT = unit(11, 6, seed=1), unit(11, 6, seed=2)
GUIDE_IMAGE, GUIDE_TEXT = unit(11, 4, seed=3), unit(11, 4, seed=4)
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
PATCHES, LINES = unit(11, 5, 6, seed=5), unit(SENTENCES, 6, seed=6)
OWNER = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3, 5, 6, 6, 8, 8, 10, 10, 10])
MASK = torch.rand(11, 5, generator=torch.Generator().manual_seed(7)) > 0.3


def global_job(group: Any, rank: int, payload: dict[str, Any]) -> list[list[Tensor]]:
    """Returns for each setting the reported values, and the gradients of the local rows, of scale and bias."""
    # With a small number, the rows of every rank are a stage of their own.
    communication.MIN_STAGE_ROWS = payload.get("least_rows", communication.MIN_STAGE_ROWS)
    rows, answers = payload["rows"], []
    for settings in payload["settings"]:
        image, text = (t[rows].clone().requires_grad_() for t in (IMAGE, TEXT))
        scale = torch.tensor(21.0, dtype=torch.float64, requires_grad=True)
        local = {key: value[rows] if isinstance(value, Tensor) else value for key, value in settings.items()}
        bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        if local.get("objective") == "sigmoid":
            local["bias"] = bias
        result = contrastive_loss(image, text, scale, group=group, **local)
        (result.loss + 0 * bias).backward()
        seen = torch.stack([result.loss.detach(), result.positives, *result.recall_at_1])
        answers.append([seen, image.grad, text.grad, torch.stack([scale.grad, bias.grad])])
    return answers


def local_job(group: Any, rank: int, payload: dict[str, Any]) -> list[list[Tensor]]:
    """Returns the same for the local loss."""
    communication.MIN_STAGE_ROWS = payload.get("least_rows", communication.MIN_STAGE_ROWS)
    rows, answers = payload["rows"], []
    lines = (rows.start <= OWNER) & (rows.stop > OWNER)
    for settings in payload["settings"]:
        patches, sentences = PATCHES[rows].clone().requires_grad_(), LINES[lines].clone().requires_grad_()
        scale = torch.tensor(21.0, dtype=torch.float64, requires_grad=True)
        local = {key: value[rows] if isinstance(value, Tensor) else value for key, value in settings.items()}
        result = region_contrastive_loss(patches, sentences, OWNER[lines] - rows.start, scale, group=group, **local)
        result.loss.backward()
        seen = torch.stack([result.loss.detach(), result.positives, *result.recall_at_1])
        answers.append([seen, patches.grad, sentences.grad, scale.grad])
    return answers


def slices(counts: tuple[int, ...]) -> list[slice]:
    ends = list(itertools.accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def require_equal_results(
    ranks: RankPool, job: Any, counts: tuple[int, ...], settings: list[dict[str, Any]], least_rows: int = 4096
) -> None:
    (alone,) = [job(None, 0, {"rows": slice(0, 11), "settings": settings})]
    payloads = [{"rows": rows, "settings": settings, "least_rows": least_rows} for rows in slices(counts)]
    many = ranks.run(job, payloads)
    for number, (seen, first, second, scale) in enumerate(alone):
        answers = [answer[number] for answer in many]
        assert all(torch.equal(answer[0], answers[0][0]) for answer in answers), settings[number]
        torch.testing.assert_close(answers[0][0], seen, rtol=1e-12, atol=1e-13)
        size = len(counts)
        # A mean over ranks, as DDP computes it. The gradient of a row is on one rank, that of the scale on all.
        torch.testing.assert_close(torch.cat([a[1] for a in answers]) / size, first, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(torch.cat([a[2] for a in answers]) / size, second, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(torch.stack([a[3] for a in answers]).mean(0), scale, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_global_loss_does_not_depend_on_the_ranks(ranks, counts, backend):
    rules = [
        Mining(guide, threshold, top_k, treatment)
        for guide in ("counterpart", "text", "image", "consensus", "joint")
        for threshold, top_k in ((0.25, None), (None, 3), (-0.1, 4))
        for treatment in ("attract", "ignore")
    ]
    # On several ranks the reference only gathers, which a few rules show. Other tests run all rules in one process.
    rules = rules if backend == "chunked" else rules[::7]
    guided = {"guide_image": GUIDE_IMAGE, "guide_text": GUIDE_TEXT}
    settings: list[dict[str, Any]] = [{"mining": rule} for rule in (None, *rules)]
    settings += [{"ids": IDS}, *({"mining": rule, "ids": IDS, **guided} for rule in rules[::2])]
    settings += [{"mining": Mining("counterpart", 0.2), "guide_image": GUIDE_IMAGE}]
    settings += [{"mining": Mining("consensus", top_k=2), "guide_text": GUIDE_TEXT}]
    settings += [{"objective": name, "ids": IDS} for name in ("mil_nce", "sigmoid")]
    settings += [{"objective": name, "mining": rule} for name in ("mil_nce", "sigmoid") for rule in rules[::4]]
    settings += [{"objective": "soft", **guided}, {"objective": "soft", **guided, "guide_scale": 4.0}]
    require_equal_results(ranks, global_job, counts, [{"backend": backend, **each} for each in settings])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_local_loss_does_not_depend_on_the_ranks(ranks, counts, backend):
    rules = [
        Mining("text", threshold, top_k, treatment)
        for threshold, top_k in ((0.4, None), (None, 3), (-0.1, 4))
        for treatment in ("attract", "ignore")
    ]
    settings: list[dict[str, Any]] = [{"mining": rule} for rule in (None, *rules)]
    settings += [{"mining": rules[0], "patch_mask": MASK, "sharpness": 3.0}]
    settings += [{"scope": "image"}, {"scope": "image", "patch_mask": MASK}]
    require_equal_results(ranks, local_job, counts, [{"backend": backend, **each} for each in settings])


@pytest.mark.parametrize("least_rows", [1, 4096])
@pytest.mark.parametrize("schedule", ["gather", "hierarchical", "ring"])
@pytest.mark.parametrize("counts", [(6, 5), (4, 0, 7), (3, 2, 5, 1), (0, 10, 0, 1)], ids=str)
def test_the_result_does_not_depend_on_the_schedule(ranks, counts, schedule, least_rows):
    rules = (None, Mining("counterpart", 0.2), Mining("consensus", top_k=3), Mining("joint", 0.2, treatment="ignore"))
    settings: list[dict[str, Any]] = [{"mining": rule, "ids": IDS} for rule in rules]
    settings += [{"mining": rules[1], "guide_image": GUIDE_IMAGE}]
    settings += [{"objective": name, "ids": IDS} for name in ("mil_nce", "sigmoid")]
    settings += [{"objective": "soft", "guide_image": GUIDE_IMAGE, "guide_text": GUIDE_TEXT}]
    require_equal_results(ranks, global_job, counts, [{"schedule": schedule, **each} for each in settings], least_rows)
    settings = [{"mining": rule} for rule in (None, Mining("text", 0.4), Mining("text", top_k=3, treatment="ignore"))]
    require_equal_results(ranks, local_job, counts, [{"schedule": schedule, **each} for each in settings], least_rows)


def tower_job(group: Any, rank: int, rows: slice) -> list[Tensor]:
    """Returns the gradients of both losses in shared weights, reduced by a plain mean over ranks."""
    weight = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6).requires_grad_()
    log_scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    image, text = IMAGE[rows] @ weight, TEXT[rows] @ weight
    lines = (rows.start <= OWNER) & (rows.stop > OWNER)
    owner = OWNER[lines] - rows.start
    near = region_contrastive_loss(PATCHES[rows] @ weight, LINES[lines], owner, log_scale.exp(), group=group)
    far = contrastive_loss(image, text, log_scale.exp(), mining=Mining(top_k=2), group=group)
    (0.5 * far.loss + near.loss).backward()
    grads = [weight.grad, log_scale.grad]
    if group is not None:
        for grad in grads:
            torch.distributed.all_reduce(grad, group=group)
            grad.div_(torch.distributed.get_world_size(group))
    return grads


def test_a_mean_over_ranks_of_shared_weights_gives_the_gradient_of_the_global_loss(ranks):
    expected = tower_job(None, 0, slice(0, 11))
    for counts in COUNTS:
        for answer in ranks.run(tower_job, slices(counts)):
            for got, want in zip(answer, expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def half_job(group: Any, rank: int, rows: slice) -> list[Tensor]:
    image, text = (t[rows].bfloat16().requires_grad_() for t in (IMAGE, TEXT))
    result = contrastive_loss(image, text, 50.0, mining=Mining(threshold=0.3), group=group)
    result.loss.backward()
    assert image.grad is not None
    assert image.grad.dtype == torch.bfloat16
    return [result.loss.detach(), image.grad.float(), text.grad.float()]


def test_vectors_in_half_precision_on_ranks_give_the_gradients_of_one_process(ranks):
    loss, by_image, by_text = half_job(None, 0, slice(0, 11))
    answers = ranks.run(half_job, slices((4, 0, 7)))
    torch.testing.assert_close(answers[2][0], loss)
    torch.testing.assert_close(torch.cat([a[1] for a in answers]) / 3, by_image, rtol=1e-2, atol=1e-5)
    # The part of each rank is rounded to bfloat16 before it is sent, and the parts are larger than their sum.
    largest = by_text.abs().max().item()
    torch.testing.assert_close(torch.cat([a[2] for a in answers]) / 3, by_text, rtol=1e-2, atol=largest / 256)


def frozen_job(group: Any, rank: int, rows: slice) -> list[Tensor]:
    # A rank without rows often holds tensors that require no gradient. It must still take part in backward.
    image, text = (t[rows].clone().requires_grad_(len(t[rows]) > 0) for t in (IMAGE, TEXT))
    contrastive_loss(image, text, 5.0, group=group).loss.backward()
    return [t.grad if t.grad is not None else torch.zeros_like(t) for t in (image, text)]


def test_a_rank_whose_empty_inputs_need_no_gradient_takes_part_in_backward(ranks):
    expected = frozen_job(None, 0, slice(0, 11))
    answers = ranks.run(frozen_job, slices((5, 0, 6)))
    for place in (0, 1):
        torch.testing.assert_close(torch.cat([a[place] for a in answers]) / 3, expected[place], atol=1e-13, rtol=1e-10)


def frozen_text_job(group: Any, rank: int, payload: tuple[slice, str]) -> list[Tensor]:
    """Runs both losses with frozen texts and sentences. A rank without rows needs no gradient at all."""
    rows, schedule = payload
    image = IMAGE[rows].clone().requires_grad_(len(IMAGE[rows]) > 0)
    patches = PATCHES[rows].clone().requires_grad_(len(IMAGE[rows]) > 0)
    lines = (rows.start <= OWNER) & (rows.stop > OWNER)
    settings: dict[str, Any] = {"group": group, "schedule": schedule}
    far = contrastive_loss(image, TEXT[rows], 5.0, **settings).loss
    near = region_contrastive_loss(patches, LINES[lines], OWNER[lines] - rows.start, 5.0, **settings).loss
    loss = far + near
    if loss.requires_grad:
        loss.backward()
    return [t.grad if t.grad is not None else torch.zeros_like(t) for t in (image, patches)]


@pytest.mark.parametrize("schedule", ["gather", "ring"])
def test_frozen_texts_block_no_rank(ranks, schedule):
    expected = frozen_text_job(None, 0, (slice(0, 11), "gather"))
    answers = ranks.run(frozen_text_job, [(rows, schedule) for rows in slices((5, 0, 6))])
    for place in (0, 1):
        torch.testing.assert_close(torch.cat([a[place] for a in answers]) / 3, expected[place], atol=1e-13, rtol=1e-10)


def nothing_job(group: Any, rank: int, payload: Any) -> float:
    image, text = (torch.zeros(0, 4, requires_grad=True) for _ in range(2))
    loss = contrastive_loss(image, text, 5.0, mining=Mining(top_k=2), group=group).loss
    patches = torch.ones(2, 3, 4, requires_grad=True)
    loss = loss + region_contrastive_loss(patches, text, torch.zeros(0, dtype=torch.int64), 5.0, group=group).loss
    loss.backward()
    assert patches.grad is not None
    assert not patches.grad.any()
    return loss.item()


def test_a_batch_that_is_empty_on_all_ranks_has_loss_zero(ranks):
    assert ranks.run(nothing_job, [None] * 3) == [0.0, 0.0, 0.0]


def silent_job(group: Any, rank: int, rows: slice) -> float:
    # Only one rank calls the loss, without a group. It would wait without end if anything were communicated.
    return contrastive_loss(IMAGE[rows], TEXT[rows], 5.0).loss.item() if rank == 0 else 0.0


def test_without_a_group_nothing_is_communicated(ranks):
    answers = ranks.run(silent_job, slices((4, 7)))
    assert answers[0] == pytest.approx(contrastive_loss(IMAGE[:4], TEXT[:4], 5.0).loss.item())


def odd_width_job(group: Any, rank: int, payload: Any) -> str:
    try:
        contrastive_loss(IMAGE[:3, : 6 - rank], TEXT[:3, : 6 - rank], 5.0, group=group)
    except RanksDisagreeError as error:
        return str(error)
    return "no error"


def test_ranks_that_differ_in_width_all_raise_an_error(ranks):
    message = ranks.run(odd_width_job, [None] * 3)
    assert message == ["width is 5 on rank 1 and 6 on rank 0; all ranks of a group must agree."] * 3


def odd_setting_job(group: Any, rank: int, payload: Any) -> str:
    try:
        contrastive_loss(IMAGE[:3], TEXT[:3], 5.0, mining=Mining(threshold=0.1 * (rank + 1)), group=group)
    except RanksDisagreeError as error:
        return str(error)
    return "no error"


def test_ranks_that_mine_differently_all_raise_an_error(ranks):
    assert all(message.startswith("mining is ") for message in ranks.run(odd_setting_job, [None] * 2))


def invalid_job(group: Any, rank: int, payload: Any) -> str:
    text = TEXT[:4] if rank == 1 else TEXT[:3]
    try:
        contrastive_loss(IMAGE[:3], text, 5.0, group=group)
    except (RanksDisagreeError, ShapeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_an_error_on_one_rank_is_an_error_on_all(ranks):
    first, second = ranks.run(invalid_job, [None] * 2)
    assert first == "RanksDisagreeError: the inputs of rank 1 are invalid; see the error of that rank."
    assert second.startswith("ShapeError: the number of rows of image is 3")
