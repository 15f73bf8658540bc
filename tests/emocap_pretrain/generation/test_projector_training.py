"""Tests that the training of a projector resumes exactly, also after it was killed."""

import multiprocessing
import os
import signal

import pytest
import torch
from emocap_shards.store import open_store
from safetensors.torch import load_file

from emocap_pretrain.errors import CheckpointError, ConfigError, TrainingError
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.generation.training import ProjectorTrainingConfig, read_state, train

CONFIG = ProjectorTrainingConfig(steps=6, batch=10, lr=1e-2, warmup_steps=2, save_every_steps=2)
STATE = "state.safetensors"


def new(language, patches) -> Captioner:
    return Captioner(Projector(patches.shape[1], language.width), language, most_tokens=24)


def trained(folder, language, patches, config=CONFIG, **options):
    train(new(language, patches), patches, config, open_store(str(folder)), STATE, **options)
    return load_file(folder / STATE)


def test_a_killed_training_resumes_from_its_last_save_and_ends_with_the_same_bits(language, patches, tmp_path):
    losses = []
    whole = trained(tmp_path / "whole", language, patches, report=lambda step, loss: losses.append((step, loss)))
    assert losses[-1][0] == 6
    assert losses[-1][1] < losses[0][1]

    def killed():
        def report(step, loss):
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        trained(tmp_path / "killed", language, patches, report=report)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert int(load_file(tmp_path / "killed" / STATE)["step"]) == 4
    again = []
    resumed = trained(tmp_path / "killed", language, patches, report=lambda step, loss: again.append((step, loss)))
    assert again == losses[4:]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert trained(tmp_path / "killed", language, patches).keys() == whole.keys()  # A finished one does nothing.


def test_each_pass_has_every_image_once_in_an_order_of_its_own():
    rows = [row for step in range(6) for row in CONFIG.rows(step, 20)]
    passes = [[row for row, epoch in rows if epoch == number] for number in range(3)]
    assert [sorted(each) for each in passes] == [list(range(20))] * 3
    assert passes[0] != passes[1]
    assert CONFIG.rows(0, 3) == CONFIG.rows(0, 3)
    assert {epoch for _, epoch in CONFIG.rows(0, 3)} == {0, 1, 2, 3}


def test_the_rate_grows_then_falls_to_zero():
    rates = [CONFIG.rate(step) for step in range(7)]
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[6] == pytest.approx(0)


def test_without_the_image_every_image_has_the_same_patches(language, patches, tmp_path):
    blank = trained(tmp_path / "blank", language, patches, blank=patches.mean_patches())
    captioner = new(language, patches)
    assert read_state(open_store(str(tmp_path / "blank")), STATE, captioner.projector) == 6
    assert torch.equal(captioner.projector.state_dict()["layers.1.bias"], blank["weights.layers.1.bias"])


def test_a_state_of_another_projector_and_a_damaged_one_are_refused(language, patches, tmp_path):
    trained(tmp_path, language, patches)
    store = open_store(str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(store, STATE, Projector(patches.shape[1] + 1, language.width))
    store.put(STATE, b"broken")
    with pytest.raises(CheckpointError, match=r"state.safetensors cannot be read.*delete it"):
        read_state(store, STATE, new(language, patches).projector)


def test_wrong_settings_and_a_loss_that_is_not_finite_are_named(language, patches, tmp_path):
    with pytest.raises(ConfigError, match="--save-every-steps 0"):
        ProjectorTrainingConfig(save_every_steps=0)
    with pytest.raises(ConfigError, match="--lr"):
        ProjectorTrainingConfig(lr=float("nan"))
    with pytest.raises(TrainingError, match="at step 1"):
        trained(tmp_path, language, patches, blank=torch.full(patches.shape, float("nan")))
