"""Tests that frozen parts of the model keep their weights, at every stage of ZeRO and in several passes."""

import pytest
import torch
from engine_batches import VOCABULARY, batch_of
from engine_jobs import Steps, engine_at, walked
from frozen_cases import CASES, frozen_config, frozen_names
from gloo_ranks import on_gloo
from pretrain_fakes import changed, stand_alone
from torch import Tensor

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.optimizer import parameter_groups

ALONE = RankGroup(Rank(), "cpu", None)
STAGES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


def begun(config: Config) -> dict[str, Tensor]:
    """Returns the weights before the first step of `walked`."""
    torch.manual_seed(0)
    return build_model(config, VOCABULARY).state_dict()


def assert_alike(found: Steps, wanted: Steps) -> None:
    for row, other in zip(found.rows, wanted.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, weight in found.weights.items():
        torch.testing.assert_close(weight, wanted.weights[name], rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_stay_and_the_others_move_alike_at_every_stage(tiny_config: Config, case: str) -> None:
    config = frozen_config(tiny_config, case)
    before, (alone,) = begun(config), walked(ALONE, config, [0], 3).values()
    still = {name for name, weight in alone.weights.items() if weight.equal(before[name])}
    assert still == frozen_names(config)
    for stage, found in on_gloo(2, walk, config)[0].items():
        assert_alike(found, alone)
        assert all(found.weights[name].equal(before[name]) for name in still), stage


def walk(world: RankGroup, config: Config) -> dict[int, Steps]:
    return walked(world, config, STAGES, 3)


@pytest.mark.parametrize("case", CASES)
def test_several_passes_and_recomputed_activations_change_no_step(tiny_config: Config, case: str) -> None:
    config = frozen_config(tiny_config, case)
    (wanted,) = walked(ALONE, config, [0], 3).values()
    other = changed(config, micro_batch=3, model__checkpoint_activations=True)
    for found in walked(ALONE, other, STAGES, 3).values():
        assert_alike(found, wanted)


OBJECTIVES = ({"backend": "reference"}, {"backend": "chunked"}, {"kind": "sigmoid"}, {"scope": "image"})


@pytest.mark.parametrize("side", ["image", "text"])
def test_each_loss_trains_when_the_vectors_of_one_side_have_no_gradient(tiny_config: Config, side: str) -> None:
    names = {"image": ["to_image", "to_patch"], "text": ["to_text", "to_sentence"]}[side]
    before = tiny_config.objective.model_dump(mode="json")
    half = changed(tiny_config, model__freeze=names, **{f"model__{side}__freeze": "all"})
    configs = [changed(half, objective={**before, **objective}) for objective in OBJECTIVES]
    for config, found in zip(configs, on_gloo(2, walk_each, configs)[0], strict=True):
        (alone,) = walked(ALONE, config, [0], 2).values()
        assert_alike(found, alone)


def walk_each(world: RankGroup, configs: list[Config]) -> list[Steps]:
    return [walked(world, config, [0], 2)[0] for config in configs]


def test_the_optimizer_has_no_state_for_what_is_frozen(tiny_config: Config) -> None:
    config = frozen_config(tiny_config, "image")
    engine = engine_at(config, ALONE, 0, seed=0)
    held = {name for group in engine.layout.groups for name, _ in group}
    assert held == engine._engine.module.state_dict().keys() - frozen_names(config)


def test_no_activations_are_kept_for_a_frozen_tower(tiny_config: Config) -> None:
    kept = [_kept_bytes(changed(tiny_config, model__image__freeze=freeze)) for freeze in (None, "all")]
    assert kept[1] < kept[0] / 2


def _kept_bytes(config: Config) -> int:
    torch.manual_seed(0)
    model, kept = build_model(config, VOCABULARY), dict[int, int]()
    weights = {each.data_ptr() for each in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    images = batch_of(config, 0, range(8)).images
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pooled, patches = model.image.encode_image(images)
        model.to_image(pooled), model.to_patch(patches)
    return sum(kept.values())


def test_a_model_without_anything_to_train_is_refused(tiny_config: Config) -> None:
    config = frozen_config(tiny_config, "nothing")
    with pytest.raises(ConfigError, match="there is nothing to train, because both towers"):
        parameter_groups(build_model(config, VOCABULARY), config.optimizer)
