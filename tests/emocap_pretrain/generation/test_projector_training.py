"""Tests that a projector is trained as torch alone would train it, on any number of ranks, and that it resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from caption_jobs import Stored, files_of, float64_gradient, losses, new, trained
from emocap_shards.store import open_store
from gloo_ranks import on_gloo
from schedulefree import AdamWScheduleFree

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.errors import CheckpointError, ConfigError, TrainingError
from emocap_pretrain.generation.training import ProjectorTrainingConfig, read_weights
from emocap_pretrain.training.schedule import learning_rate

OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1)
CONFIG = ProjectorTrainingConfig(steps=6, batch=10, optimizer=OPTIMIZER, save_every_steps=2)


@pytest.fixture
def captioner(language, patches):
    return new(language, patches.shape[1])


def test_a_stopped_training_resumes_from_its_last_save_and_ends_with_the_same_bits(language, patches, tmp_path):
    def run(folder, **options):
        return trained(tmp_path / folder, new(language, patches.shape[1]), patches, CONFIG, **options)

    rows, again = [], []
    whole = run("whole", report=lambda step, metrics: rows.append((step, metrics)))
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1][1]["loss"] < rows[0][1]["loss"]

    def stop(step, _metrics):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", report=stop)
    resumed = run("stopped", report=lambda step, metrics: again.append((step, metrics)))
    assert again == rows[4:]
    assert files_of(resumed) == files_of(whole)
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) == 2  # Older ones are deleted.
    run("stopped", report=stop)  # A finished one makes no update.


@pytest.mark.parametrize("name", ["adamw", "schedule_free"])
def test_the_engine_trains_as_torch_alone_would(language, patches, captioner, tmp_path, name):
    """The reference has no engine, no ranks and no rule of this project except the learning rate of a step."""
    of_kind = {"schedule": "constant"} if name == "schedule_free" else {}
    settings = OPTIMIZER.model_copy(update={"name": name, "clip_norm": 0.1, **of_kind})
    config = replace(CONFIG, steps=3, optimizer=settings)
    store = trained(tmp_path, captioner, patches, config)
    assert read_weights(captioner, store, config) == 3

    plain = new(language, patches.shape[1])
    parameters = list(plain.projector.parameters())
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    kind = AdamWScheduleFree if name == "schedule_free" else torch.optim.AdamW
    optimizer = kind(groups, betas=settings.betas, eps=settings.eps)
    for step in range(3):
        if name == "schedule_free":
            optimizer.train()
        rows = config.rows(step, len(patches))
        captions = [patches.images[row].captions[0] for row, _ in rows]
        total, tokens = plain.summed_loss(plain.image_tokens(patches.patches([row for row, _ in rows])), captions)
        optimizer.zero_grad()
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, 3)
        optimizer.step()
    if name == "schedule_free":
        optimizer.eval()
    for ours, reference in zip(captioner.projector.parameters(), parameters, strict=True):
        assert torch.allclose(ours, reference, rtol=0, atol=1e-6)


def test_any_number_of_ranks_trains_alike_up_to_rounding(llama, patches, tmp_path):
    """Ten images are not divisible by three ranks, and captions differ in length, so a mean of means would fail."""
    config = replace(CONFIG, steps=3, save_every_steps=3)
    ((loss, norm, weights),) = on_gloo(1, losses, llama, Stored.of(patches), config, tmp_path / "1")
    assert len(set(loss)) == 3
    for ranks in (2, 3):
        for found in on_gloo(ranks, losses, llama, Stored.of(patches), config, tmp_path / str(ranks)):
            assert found[0] == pytest.approx(loss, rel=1e-5)
            assert found[1] == pytest.approx(norm, rel=1e-4)
            assert np.abs(found[2] - weights).max() < 1e-4


def test_loss_and_gradient_in_float64_do_not_depend_on_the_number_of_ranks(llama, patches):
    ((loss, gradient),) = on_gloo(1, float64_gradient, llama, Stored.of(patches), CONFIG)
    assert np.abs(gradient).max() > 1e-2
    for ranks in (2, 3):
        for found in on_gloo(ranks, float64_gradient, llama, Stored.of(patches), CONFIG):
            assert found[0] == pytest.approx(loss, rel=1e-14)
            assert np.abs(found[1] - gradient).max() < 1e-14


def test_fp16_scales_the_loss(language, patches, tmp_path):
    rows = []
    captioner = new(language, patches.shape[1], precision="fp16")
    config = replace(CONFIG, steps=2)
    trained(tmp_path, captioner, patches, config, report=lambda _, metrics: rows.append(metrics))
    assert all(row["loss_scale"] > 1 and np.isfinite(row["loss"]) for row in rows)


def test_each_pass_has_every_image_once_in_an_order_of_its_own():
    rows = [row for step in range(6) for row in CONFIG.rows(step, 20)]
    passes = [[row for row, epoch in rows if epoch == number] for number in range(3)]
    assert [sorted(each) for each in passes] == [list(range(20))] * 3
    assert passes[0] != passes[1]
    assert CONFIG.rows(0, 3) == CONFIG.rows(0, 3)
    assert {epoch for _, epoch in CONFIG.rows(0, 3)} == {0, 1, 2, 3}


def test_without_the_image_every_image_has_the_same_patches(language, patches, captioner, tmp_path):
    mean = patches.mean_patches()
    store = trained(tmp_path, captioner, patches, replace(CONFIG, steps=2), blank=mean)
    same = replace(patches, images=patches.images)
    same.__dict__["_patches"] = [mean.numpy()[None].repeat(len(patches), 0)]
    expected = trained(tmp_path / "same", new(language, patches.shape[1]), same, replace(CONFIG, steps=2))
    assert files_of(store) == files_of(expected)


def test_a_state_of_another_projector_and_a_damaged_one_are_refused(language, patches, captioner, tmp_path):
    config = replace(CONFIG, steps=1)
    store = trained(tmp_path, captioner, patches, config)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        read_weights(new(language, patches.shape[1] + 1), store, config)
    next(tmp_path.rglob("model.safetensors")).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        read_weights(captioner, store, config)
    with pytest.raises(CheckpointError, match="every checkpoint of the run"):
        trained(tmp_path, captioner, patches, config)
    assert read_weights(captioner, open_store(str(tmp_path / "empty")), config) == 0


def test_wrong_settings_and_a_loss_that_is_not_finite_are_named(patches, captioner, tmp_path):
    with pytest.raises(ConfigError, match="--save-every-steps 0"):
        ProjectorTrainingConfig(save_every_steps=0)
    with pytest.raises(ConfigError, match="--batch 10 leaves some of 11 ranks without an image"):
        CONFIG.require_rows(11)
    with pytest.raises(TrainingError, match="at step 1"):
        trained(tmp_path, captioner, patches, CONFIG, blank=torch.full(patches.shape, float("nan")))
