from dataclasses import replace
from typing import get_args

import emocap_kernels
import pytest
import torch
from emocap_kernels import Mining
from emocap_kernels.contrastive.objectives import ObjectiveName
from pretrain_fakes import objective_of
from torch.nn.functional import normalize

from emocap_pretrain.config.objective import Kind, ObjectiveConfig
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.pair import Embeddings
from emocap_pretrain.training.objective import Objective

ROWS, PATCHES, WIDTH = 6, 4, 8
OWNER = torch.tensor([0, 0, 1, 2, 4, 4, 5])
MINED = {"mining": {"guide": "text", "threshold": 0.1}, "local_mining": {"threshold": 0.1, "treatment": "ignore"}}


def embeddings() -> Embeddings:
    random = torch.Generator().manual_seed(0)

    def units(*shape: int) -> torch.Tensor:
        return normalize(torch.randn(*shape, WIDTH, generator=random), dim=-1).requires_grad_()

    scales = {name: torch.tensor(value, requires_grad=True) for name, value in (("image", 12.0), ("patches", 7.0))}
    image, patches = units(ROWS), units(ROWS, PATCHES)
    texts = {"global": units(ROWS), "summary": units(ROWS), "local": units(len(OWNER))}
    return Embeddings(image, patches, texts, scales, {"image": torch.tensor(-3.0, requires_grad=True)}, {})


def batch(global_ids: list[int], summary_ids: list[int]) -> Batch:
    ids, mask = torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1), dtype=torch.bool)
    texts = {
        "global": Texts(ids, mask, identity=torch.tensor(global_ids)),
        "summary": Texts(ids, mask, identity=torch.tensor(summary_ids)),
        "local": Texts(ids, mask, owner=OWNER),
    }
    return Batch(torch.zeros((ROWS, 3, 2, 2), dtype=torch.uint8), texts)


DISTINCT = batch(list(range(6)), list(range(6)))
REPEATED = batch([1, 2, 1, 4, 5, 6], [7, 7, 7, 1, 2, 3])


def terms(settings: dict, given: Batch = DISTINCT, step: int = 0, vectors: Embeddings | None = None):
    return Objective.of(ObjectiveConfig.model_validate(settings), precision="fp32")(
        vectors or embeddings(), given, step
    )


def kernels(given: Batch, mining: Mining | None = None, local_mining: Mining | None = None, ids: bool = True):
    """Computes the losses of the three parts directly with the kernels, and returns them by name."""
    e = embeddings()
    aligned = {
        name: emocap_kernels.contrastive_loss(
            e.image,
            e.texts[name],
            e.scales["image"],
            mining=mining,
            ids=given.texts[name].identity if ids else None,
        ).loss
        for name in ("global", "summary")
    }
    local = emocap_kernels.region_contrastive_loss(
        e.patches, e.texts["local"], OWNER, e.scales["patches"], mining=local_mining
    )
    return {**aligned, "local": local.loss}


@pytest.mark.parametrize("weights", [(0.5, 0.5, 1), (2, 0.25, 0.125), (0, 1, 3), (1, 0, 0), (0, 0, 2)])
@pytest.mark.parametrize("given", [DISTINCT, REPEATED], ids=["distinct", "repeated"])
def test_the_loss_is_the_weighted_sum_of_the_kernels(weights, given):
    names = "global", "summary", "local"
    expected = kernels(given)
    result = terms(dict(zip(names, weights, strict=True)), given)
    total = sum(weight * expected[name] for name, weight in zip(names, weights, strict=True))
    torch.testing.assert_close(result.loss, total)
    torch.testing.assert_close(result.metrics["loss"], total)


@pytest.mark.parametrize("off", ["global", "summary", "local"])
def test_a_weight_of_zero_switches_its_term_off(off):
    vectors = embeddings()
    result = terms({off: 0}, vectors=vectors)
    result.loss.backward()
    assert not any(name.startswith(off) for name in result.metrics)
    untouched = dict(vectors.texts)
    assert untouched.pop(off).grad is None
    assert all(part.grad is not None and part.grad.any() for part in untouched.values())


def test_each_term_tells_its_loss_its_recall_and_its_positives():
    result = terms({})
    expected = kernels(DISTINCT)
    for name in ("global", "summary", "local"):
        torch.testing.assert_close(result.metrics[f"{name}/loss"], expected[name])
        mean = (result.metrics[f"{name}/image_to_text"] + result.metrics[f"{name}/text_to_image"]) / 2
        torch.testing.assert_close(mean, expected[name])
        assert 0 <= result.metrics[f"{name}/recall_at_1_image_to_text"] <= 1
        assert 0 <= result.metrics[f"{name}/recall_at_1_text_to_image"] <= 1
        assert result.metrics[f"{name}/positives"] >= 1
    assert not any(value.requires_grad for value in result.metrics.values())


@pytest.mark.parametrize(("step", "mines"), [(0, False), (2, False), (3, True), (100, True)])
def test_mining_begins_after_its_warm_up(step, mines):
    text, local = Mining(guide="text", threshold=0.1), Mining(guide="text", threshold=0.1, treatment="ignore")
    expected = kernels(DISTINCT, text, local) if mines else kernels(DISTINCT)
    result = terms(MINED | {"mining_warmup_steps": 3, "global": 1, "summary": 1, "local": 1}, step=step)
    torch.testing.assert_close(result.loss, sum(expected.values()))
    assert (result.metrics["global/positives"] > 1) == mines


def test_mining_of_one_part_leaves_the_other_as_it_is():
    plain, mined = kernels(DISTINCT), terms({"mining": MINED["mining"]})
    torch.testing.assert_close(mined.metrics["local/loss"], plain["local"])
    assert not torch.isclose(mined.metrics["global/loss"], plain["global"])
    mined = terms({"local_mining": MINED["local_mining"]})
    torch.testing.assert_close(mined.metrics["global/loss"], plain["global"])
    assert not torch.isclose(mined.metrics["local/loss"], plain["local"])


def test_equal_captions_are_positives_of_each_other_also_during_the_warm_up():
    result = terms({"mining_warmup_steps": 10}, REPEATED)
    # Rows 0 and 2 share a global part: 2 of 6 anchors have one more; rows 0 to 2 share a summary.
    assert result.metrics["global/positives"].item() == pytest.approx((2 * 2 + 4) / 6)
    assert result.metrics["summary/positives"].item() == pytest.approx((3 * 3 + 3) / 6)


def test_equal_captions_can_be_taken_as_strangers():
    result = terms({"known_positives": False}, REPEATED)
    assert result.metrics["global/positives"] == 1
    torch.testing.assert_close(result.metrics["global/loss"], kernels(REPEATED, ids=False)["global"])


@pytest.mark.parametrize(("name", "value"), [("sharpness", 1.0), ("scope", "image")])
def test_settings_of_the_local_term_reach_its_kernel(name, value):
    e = embeddings()
    expected = emocap_kernels.region_contrastive_loss(
        e.patches, e.texts["local"], OWNER, e.scales["patches"], **{name: value}
    ).loss
    result = terms({name: value})
    torch.testing.assert_close(result.metrics["local/loss"], expected)
    assert not torch.isclose(expected, kernels(DISTINCT)["local"])


@pytest.mark.parametrize("kind", ["mil_nce", "sigmoid"])
def test_the_kind_of_a_part_reaches_its_kernel(kind):
    e = embeddings()
    bias = e.biases["image"] if kind == "sigmoid" else None
    losses = {
        name: emocap_kernels.contrastive_loss(
            e.image, e.texts["summary"], e.scales["image"], ids=torch.arange(6), **keywords
        ).loss
        for name, keywords in (("infonce", {}), (kind, {"objective": kind, "bias": bias}))
    }
    for settings, expected in (
        ({}, "infonce"),
        ({"kind": kind}, kind),
        ({"kind_by_part": {"summary": kind}}, kind),
        ({"kind": kind, "kind_by_part": {"summary": "infonce"}}, "infonce"),
    ):
        result = terms(settings)
        torch.testing.assert_close(result.metrics["summary/loss"], losses[expected])
        torch.testing.assert_close(result.metrics["local/loss"], kernels(DISTINCT)["local"])
    assert "bias" not in terms({}).metrics
    assert ("bias" in terms({"kind": kind}).metrics) == (kind == "sigmoid")


def test_a_kind_for_a_part_that_is_aligned_with_patches_is_refused():
    with pytest.raises(ConfigError, match=r"kind_by_part: local is aligned with patches.* leave local out"):
        terms({"kind_by_part": {"local": "mil_nce"}})


def test_the_kinds_are_the_objectives_of_the_kernels():
    assert get_args(Kind) == get_args(ObjectiveName)


TEACHER = {"name": "vit_tiny_patch16_224", "pretrained": "hub", "scale": 5.0}


def taught(settings: dict, given: Batch = DISTINCT):
    """Returns the result of an objective whose teacher always returns the same six vectors."""
    objective = Objective.of(
        ObjectiveConfig.model_validate(settings), precision="fp32", teacher=lambda images: vectors_of(len(images))
    )
    return objective(embeddings(), given, 0)


def vectors_of(rows: int) -> torch.Tensor:
    return normalize(torch.randn(rows, 3, generator=torch.Generator().manual_seed(4)), dim=-1)


def test_the_shares_of_the_teacher_reach_the_kernel_on_both_sides():
    e, guide = embeddings(), vectors_of(ROWS)
    expected = emocap_kernels.contrastive_loss(
        e.image,
        e.texts["summary"],
        e.scales["image"],
        objective="soft",
        guide_image=guide,
        guide_text=guide,
        guide_scale=5.0,
    ).loss
    result = taught({"kind_by_part": {"summary": "soft"}, "teacher": TEACHER, "mining": MINED["mining"]})
    torch.testing.assert_close(result.metrics["summary/loss"], expected)
    # The other part has positives, and so mines.
    mined = kernels(DISTINCT, Mining(**MINED["mining"]))
    torch.testing.assert_close(result.metrics["global/loss"], mined["global"])


@pytest.mark.parametrize("guide", ["image", "counterpart", "consensus"])
def test_mining_that_compares_images_compares_those_of_the_teacher(guide):
    e = embeddings()
    expected = emocap_kernels.contrastive_loss(
        e.image,
        e.texts["global"],
        e.scales["image"],
        mining=Mining(guide, 0.1),
        guide_image=vectors_of(ROWS),
        ids=torch.arange(ROWS),
    ).loss
    result = taught({"teacher": TEACHER, "mining": {"guide": guide, "threshold": 0.1}})
    torch.testing.assert_close(result.metrics["global/loss"], expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "soft"}, r"objective\.kind: global is soft.*give objective\.teacher"),
        ({"kind_by_part": {"summary": "soft"}}, r"summary is soft"),
        ({"teacher": TEACHER}, r"objective\.teacher: no term reads it"),
        ({"teacher": TEACHER, "mining": {"guide": "joint", "threshold": 0.1}}, r"objective\.teacher: no term reads it"),
        ({"kind": "soft", "teacher": TEACHER, "mining": {"threshold": 0.1}}, r"objective\.mining: .* mines none"),
        ({"kind": "soft", "teacher": TEACHER, "global": 0, "summary": 0}, r"objective\.teacher: no term reads it"),
    ],
)
def test_a_teacher_that_is_missing_or_unread_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Objective.of(ObjectiveConfig.model_validate(settings), precision="fp32")


def test_patches_of_one_colour_take_no_part_in_the_local_loss():
    images = torch.zeros((ROWS, 3, 4, 4), dtype=torch.uint8)
    images[:, 0, 0, 0] = 50
    images[2:4, 0, 3, 3] = 50
    kept = torch.zeros((ROWS, PATCHES), dtype=torch.bool)
    kept[:, 0] = True
    kept[2:4, 3] = True
    e = embeddings()
    expected = emocap_kernels.region_contrastive_loss(
        e.patches, e.texts["local"], OWNER, e.scales["patches"], patch_mask=kept
    ).loss
    result = terms({"patch_mask": {}}, replace(DISTINCT, images=images))
    torch.testing.assert_close(result.metrics["local/loss"], expected)
    assert not torch.isclose(expected, kernels(DISTINCT)["local"])


def test_both_scales_are_learned():
    vectors = embeddings()
    terms({}, vectors=vectors).loss.backward()
    for scale in vectors.scales.values():
        assert scale.grad is not None
        assert scale.grad.item() != 0


@pytest.mark.parametrize(
    ("precision", "vectors", "expected"),
    [("fp32", "auto", torch.float32), ("bf16", "auto", torch.bfloat16), ("bf16", "fp32", torch.float32)],
)
def test_losses_use_vectors_of_the_engines_precision_unless_configured_otherwise(
    tiny_config, precision, vectors, expected, monkeypatch
):
    seen: list[torch.dtype] = []
    for name in ("contrastive_loss", "region_contrastive_loss"):
        original = getattr(emocap_kernels, name)

        def watched(*tensors, original=original, **settings):
            seen.extend(tensor.dtype for tensor in tensors[:2])
            return original(*tensors, **settings)

        monkeypatch.setattr(emocap_kernels, name, watched)
    engine = tiny_config.engine.model_copy(update={"precision": precision})
    objective = tiny_config.objective.model_copy(update={"vectors": vectors})
    config = tiny_config.model_copy(update={"engine": engine, "objective": objective})
    given = embeddings()
    result = objective_of(config)(given, DISTINCT, 0)
    result.loss.backward()
    assert set(seen) == {expected}
    assert given.patches.grad is not None
    assert given.patches.grad.dtype == torch.float32
