"""Tests the optimizer in host memory (ZeRO offload). On a CPU all tensors are there anyway; the code is the same."""

import pytest
import torch
from engine_jobs import walked
from gloo_ranks import on_gloo
from optimizer_cases import with_optimizer
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.memory import estimate

STAGES = (1, 2, 3)


@pytest.mark.parametrize(("optimizer", "micro_batch"), [("adamw", None), ("lion", 3)])
def test_an_optimizer_in_host_memory_takes_the_same_steps_at_every_stage(
    tiny_config: Config, optimizer: str, micro_batch: int | None
) -> None:
    config = with_optimizer(changed(tiny_config, global_batch=9, micro_batch=micro_batch), optimizer)
    offloaded = changed(config, engine={"offload_optimizer": True, "zero_stage": 1})
    plain, found = (on_gloo(2, walked, each, STAGES, 3)[0] for each in (config, offloaded))
    for stage in STAGES:
        for row, wanted in zip(found[stage].rows, plain[stage].rows, strict=True):
            assert row == pytest.approx(wanted, rel=1e-6)
        for name, weight in found[stage].weights.items():
            torch.testing.assert_close(weight, plain[stage].weights[name], rtol=1e-6, atol=1e-7, msg=name)


def test_the_estimate_counts_it_in_host_memory_if_the_device_is_a_gpu(tiny_config: Config) -> None:
    offloaded = changed(tiny_config, engine={"offload_optimizer": True, "zero_stage": 2})
    plain = changed(tiny_config, engine={"zero_stage": 2})
    on_gpu, before = (estimate(each, 2, on_gpu=True) for each in (offloaded, plain))
    assert (on_gpu.optimizer, on_gpu.offloaded) == (0, before.optimizer)
    assert before.total - on_gpu.total == before.optimizer
    assert ("host memory", "0.00 GiB for the optimizer of each rank") in on_gpu.lines()
    on_cpu = estimate(offloaded, 2, on_gpu=False)
    assert (on_cpu.optimizer, on_cpu.offloaded) == (before.optimizer, 0)
