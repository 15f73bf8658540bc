"""Every kernel compiles for sm_80 and sm_90 without a GPU, within the shared memory of these devices."""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import compiled
from emocap_kernels.contrastive.fused.kernels import gradient, mining, pairwise, score_bounds, statistics
from emocap_kernels.fused import tiling
from emocap_kernels.fused.kernels import nearest
from emocap_kernels.region.fused import tiling as region_tiling
from emocap_kernels.region.fused import within as region_within
from emocap_kernels.region.fused.kernels import mining as region_mining
from emocap_kernels.region.fused.kernels import pooling, within

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

PLAIN = {"HAS_IDS": False, "RULE": 0, "ATTRACT": True}
IDS = {"HAS_IDS": True, "RULE": 0, "ATTRACT": True}
SCORE = {"HAS_IDS": False, "RULE": 1, "ATTRACT": True}
MASKED = {"HAS_IDS": True, "RULE": 2, "ATTRACT": False}
MEAN = {"SUM_POSITIVES": False, "RUNNING_MAX": False}
RUNNING_MAX = {"SUM_POSITIVES": False, "RUNNING_MAX": True}
SUMMED = {"SUM_POSITIVES": True, "RUNNING_MAX": True}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "statistics": (statistics.statistics_kernel, PLAIN | MEAN),
    "statistics, ids": (statistics.statistics_kernel, IDS | MEAN),
    "statistics, score": (statistics.statistics_kernel, SCORE | MEAN),
    "statistics, mask": (statistics.statistics_kernel, MASKED | RUNNING_MAX),
    "statistics, mil_nce": (statistics.statistics_kernel, MASKED | SUMMED),
    "gradient": (gradient.gradient_kernel, PLAIN | MEAN),
    "gradient, ids": (gradient.gradient_kernel, IDS | MEAN),
    "gradient, score": (gradient.gradient_kernel, SCORE | MEAN),
    "gradient, mask": (gradient.gradient_kernel, MASKED | RUNNING_MAX),
    "gradient, mil_nce": (gradient.gradient_kernel, MASKED | SUMMED),
    "sigmoid": (pairwise.sigmoid_kernel, PLAIN | {"WITH_GRADIENT": True}),
    "sigmoid, mask": (pairwise.sigmoid_kernel, MASKED | {"WITH_GRADIENT": True}),
    "soft": (pairwise.soft_kernel, {"WITH_GRADIENT": True}),
    "threshold": (mining.threshold_kernel, {"COMBINE": 1}),
    "nearest": (nearest.nearest_kernel, {"TOP_K": 8, "bK": 8, "TWO_SIMILARITIES": True}),
}
# Shared memory of a program. Tiles for sm_80 must also fit devices with less of it (sm_86, sm_89).
SHARED_BYTES = {80: 99 * 2**10, 90: 227 * 2**10}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for(name, capability, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability // 10, 0))
    masked = name not in ("statistics", "gradient", "threshold")
    tile = tiling.tile_config_for(torch.bfloat16, torch.device("cuda"), masked=masked)
    found = compiled(kernel, capability, "bfloat16", {**tile.options(), **constants}, tmp_path)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[capability]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["statistics", "gradient, mask", "sigmoid", "soft", "threshold", "nearest"])
def test_a_kernel_compiles_in_every_type(name, dtype, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tile = tiling.tile_config_for(
        dtype, torch.device("cuda"), masked=name not in ("statistics", "gradient", "threshold")
    )
    short = str(dtype).removeprefix("torch.")
    found = compiled(kernel, 90, short, {**tile.options(), **constants}, tmp_path)
    assert "wgmma.mma_async" in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[90]


LOCAL_KERNELS = {"pool": pooling.pool_kernel, "pool_backward": pooling.pool_backward_kernel}


def region_options(patches: int, dtype: torch.dtype, *, masked: bool) -> dict[str, Any]:
    tile = region_tiling.region_tile_config(patches, dtype, torch.device("cuda"))
    return {"nP": patches, "MASKED": masked, **tile.options()}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("patches", "masked"), [(49, False), (196, False), (196, True), (256, False), (576, False)])
@pytest.mark.parametrize("name", LOCAL_KERNELS)
def test_a_kernel_of_the_local_loss_compiles_for(name, patches, masked, capability, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability // 10, 0))
    options = region_options(patches, torch.bfloat16, masked=masked)
    found = compiled(LOCAL_KERNELS[name], capability, "bfloat16", options, tmp_path)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[capability]
    # Hardly any register is spilled: a few bytes where masks are read.
    assert found.stack_bytes <= 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LOCAL_KERNELS)
def test_a_kernel_of_the_local_loss_compiles_in_every_type(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    options = region_options(196, dtype, masked=False)
    found = compiled(LOCAL_KERNELS[name], 90, str(dtype).removeprefix("torch."), options, tmp_path)
    assert "wgmma.mma_async" in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[90]
    assert found.stack_bytes <= 64


@pytest.mark.parametrize("capability", [80, 90])
def test_the_comparison_of_sentences_compiles(capability, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability // 10, 0))
    options = tiling.tile_config_for(torch.bfloat16, torch.device("cuda"), masked=True).options()
    found = compiled(region_mining.any_similar_kernel, capability, "bfloat16", {**options, "bC": 16}, tmp_path)
    assert found.shared_bytes <= SHARED_BYTES[capability]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["pool", "loss", "score_gradient", "pool_backward"])
def test_a_kernel_within_an_image_compiles(name, dtype, tmp_path):
    patches = torch.empty(1, 196, 512, dtype=dtype)
    options = {"MASKED": True, **region_within.options(dtype), **region_within.patch_options(patches, masked=True)}
    short = str(dtype).removeprefix("torch.")
    found = compiled(getattr(within, f"{name}_kernel"), 90, short, options, tmp_path)
    assert found.shared_bytes <= SHARED_BYTES[90]
    assert dtype == torch.float32 or found.stack_bytes <= 32


def test_the_score_bounds_compile(tmp_path):
    for capability in (80, 90):
        compiled(score_bounds.score_bounds_kernel, capability, "bfloat16", {"bR": 32, "bD": 128}, tmp_path)


@pytest.mark.parametrize(("name", "most"), [("statistics, mask", 384), ("gradient", 512), ("gradient, mask", 128)])
def test_hardly_any_register_of_a_hot_kernel_spills(name, most, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tile = tiling.tile_config_for(torch.bfloat16, torch.device("cuda"), masked=constants["RULE"] != 0)
    constants = {**constants, **MEAN}
    found = compiled(kernel, 90, "bfloat16", {**tile.options(), **constants}, tmp_path)
    assert found.stack_bytes <= most
