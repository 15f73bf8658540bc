"""Tests the optimizers: the state that they declare, their parameter groups, what resumes and what is refused."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from engine_batches import VOCABULARY
from engine_jobs import Steps, engine_at, stepped, weights_of
from optimizer_cases import CASES, STAGES, with_optimizer
from pretrain_fakes import changed, stand_alone
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emocap_pretrain.checkpoint.layout import HEADER, WEIGHTS
from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.optimizer import OPTIMIZERS, OptimizerSpec, optimizer_of, parameter_groups
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import Layout, file_of

ALONE = RankGroup(Rank(), "cpu", None)
STEPS = 5
NAMES = tuple(dict.fromkeys(name for name, _ in CASES))


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, steps=STEPS)


def test_the_config_and_the_tests_know_every_optimizer() -> None:
    named = set(get_args(OptimizerConfig.model_fields["name"].annotation))
    assert named == OPTIMIZERS.keys() == set(NAMES)


def group_of(spec: OptimizerSpec, parameter: nn.Parameter) -> dict[str, Any]:
    """Returns the parameter group in which the spec puts a parameter."""
    options = spec.matrix_options if spec.matrix_options and parameter.ndim == 2 else spec.other_options
    return {**options, "params": [parameter], "lr": 0.1, "weight_decay": 0.1}


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_declares_exactly_the_state_that_it_keeps(
    config: Config, name: str, shape: tuple[int, ...]
) -> None:
    spec = optimizer_of(with_optimizer(config, name).optimizer, 0)
    parameter = nn.Parameter(torch.ones(shape))
    group = group_of(spec, parameter)
    optimizer = spec.make([group])
    options = copy.deepcopy(optimizer.param_groups[0])
    parameter.grad = torch.ones(shape)
    optimizer.step()
    # Muon keeps there too what it has read from the options of the group.
    kept = {key: value for key, value in optimizer.state[parameter].items() if key != "use_muon"}
    begun = spec.begin(parameter.detach(), group)
    assert kept.keys() == begun.keys()
    assert kept.keys() <= {*spec.per_element, *spec.per_parameter, *spec.global_}
    for key, value in kept.items():
        assert (value.shape, value.dtype) == (begun[key].shape, begun[key].dtype), key
        if key in spec.per_element:
            assert value.shape == shape
        if key in spec.global_:
            assert value.ndim == 0
    stored = [value.numel() for key, value in kept.items() if key not in spec.global_]
    assert spec.state_elements(parameter, group) == sum(stored)
    # `scheduled_lr` is only for logs: each step of schedule-free AdamW computes it anew.
    options["scheduled_lr"] = optimizer.param_groups[0].get("scheduled_lr")
    assert spec.per_group.keys() == {
        key for key, value in optimizer.param_groups[0].items() if key != "params" and value != options.get(key)
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_state_before_the_first_update_equals_that_of_the_library(config: Config, name: str) -> None:
    spec = optimizer_of(with_optimizer(config, name).optimizer, 0)
    torch.manual_seed(0)
    own, given = (nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    optimizers = [spec.make([group_of(spec, each)]) for each in (own, given)]
    optimizers[1].state[given].update(spec.begin(given.detach(), optimizers[1].param_groups[0]))
    for _ in range(3):
        gradient = torch.randn(2, 3)
        for each, optimizer in zip((own, given), optimizers, strict=True):
            each.grad = gradient.clone()
            optimizer.step()
        assert own.equal(given)


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_a_run_resumes_to_the_bit_at_every_step(config: Config, tmp_path: Path, name: str, stage: int) -> None:
    config = with_optimizer(config, name)
    engine = engine_at(config, ALONE, stage, seed=0)
    rows: list[tuple[float, float, float]] = []
    for step in range(STEPS):
        write(engine, tmp_path / str(step))
        rows += stepped(engine, config, ALONE, range(step, step + 1)).rows
    unbroken = Steps(rows, weights_of(engine))
    assert rows[-1][0] < rows[0][0]
    for step in range(STEPS):
        resumed = engine_from(config, stage, tmp_path / str(step), engine.layout, step)
        assert resumed.step == step
        steps = stepped(resumed, config, ALONE, range(step, STEPS))
        assert steps.rows == unbroken.rows[step:]
        assert all(weight.equal(unbroken.weights[key]) for key, weight in steps.weights.items())


def write(engine: Engine, folder: Path) -> None:
    snapshot = engine.snapshot()
    snapshot.require_finite()
    snapshot.write(folder)
    snapshot.release()


def engine_from(config: Config, stage: int, folder: Path, layout: Layout, step: int) -> Engine:
    """Returns a new engine with the weights and the optimizer's state in the folder.

    Its model was first initialised from another seed.
    """
    config = changed(config, engine__zero_stage=stage)
    torch.manual_seed(100)
    model = build_model(config, VOCABULARY)
    fill(model, folder / WEIGHTS)
    engine = build_engine(config, model, ALONE)
    engine.load(folder, Layout.from_json(json.loads(json.dumps(layout.to_json()))), step)
    return engine


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_of_zero_takes_the_same_steps_with_sgd(config: Config, stage: int) -> None:
    config = with_optimizer(config, "sgd")
    plain, cut = (stepped(engine_at(config, ALONE, each, seed=0), config, ALONE, range(STEPS)) for each in (0, stage))
    for row, wanted in zip(cut.rows, plain.rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


def test_a_checkpoint_holds_the_states_of_its_optimizer_by_name(config: Config, tmp_path: Path) -> None:
    keys: dict[str, set[str]] = {}
    for name in NAMES:
        engine = engine_at(with_optimizer(config, name), ALONE, 0, seed=0)
        stepped(engine, config, ALONE, range(1))
        write(engine, tmp_path / name)
        keys[name] = {key.partition("/")[0] for key in load_file(tmp_path / name / file_of(0))}
        assert engine.layout.to_json()["optimizer"] == name
    assert keys == {
        "adamw": {"exp_avg", "exp_avg_sq", "step"},
        "sgd": {"momentum_buffer"},
        "adafactor": {"variance", "row_var", "col_var", "step"},
        "lion": {"exp_avg"},
        "lamb": {"exp_avg", "exp_avg_sq", "step"},
        "muon": {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"},
        "schedule_free": {"z", "exp_avg_sq", "k", "weight_sum", "lr_max"},
    }
    stored = load_file(tmp_path / "adafactor" / file_of(0))
    assert stored["row_var/to_image.weight"].shape == (16, 1)
    assert stored["col_var/to_image.weight"].shape == (1, 32)


def test_sgd_without_momentum_keeps_no_state(config: Config, tmp_path: Path) -> None:
    config = with_optimizer(config, "sgd", sgd={"momentum": 0.0})
    engine = engine_at(config, ALONE, 1, seed=0)
    stepped(engine, config, ALONE, range(2))
    write(engine, tmp_path)
    assert load_file(tmp_path / file_of(0)) == {}
    later = engine_from(config, 1, tmp_path, engine.layout, 2)
    assert stepped(later, config, ALONE, range(2, 4)).rows == stepped(engine, config, ALONE, range(2, 4)).rows


@pytest.mark.parametrize("change", [{"sgd": {"momentum": 0.5}}, {"sgd": {"nesterov": True}}])
def test_the_settings_of_an_optimizer_reach_it(config: Config, change: dict[str, Any]) -> None:
    plain, other = with_optimizer(config, "sgd"), with_optimizer(config, "sgd", **change)
    rows = [stepped(engine_at(each, ALONE, 1, seed=0), each, ALONE, range(3)).rows for each in (plain, other)]
    assert rows[0][0] == rows[1][0]
    assert rows[0][2] != rows[1][2]


def test_files_of_version_0_1_0_hold_adam_s_updates_in_their_header(config: Config, tmp_path: Path) -> None:
    engine = engine_at(config, ALONE, 2, seed=0)
    stepped(engine, config, ALONE, range(2))
    write(engine, tmp_path)
    stored = load_file(tmp_path / file_of(0))
    assert float(stored.pop("step")) == 2
    save_file(stored, tmp_path / file_of(0), {HEADER: json.dumps({"updates": 2, "offsets": offsets_of(engine)})})
    tree = engine.layout.to_json()
    del tree["optimizer"]
    old = engine_from(config, 2, tmp_path, Layout.from_json(tree), 2)
    assert stepped(old, config, ALONE, range(2, 4)).rows == stepped(engine, config, ALONE, range(2, 4)).rows


def test_files_of_a_later_schema_are_refused(config: Config, tmp_path: Path) -> None:
    engine = engine_at(config, ALONE, 1, seed=0)
    write(engine, tmp_path)
    header = {HEADER: json.dumps({"schema": 2, "offsets": offsets_of(engine)})}
    save_file(load_file(tmp_path / file_of(0)), tmp_path / file_of(0), header)
    with pytest.raises(CheckpointError, match="have schema 2, and this version reads up to 1"):
        engine.load(tmp_path, engine.layout, 1)


def test_state_of_another_optimizer_is_refused_by_both_names(config: Config, tmp_path: Path) -> None:
    engine = engine_at(config, ALONE, 1, seed=0)
    write(engine, tmp_path)
    other = engine_at(with_optimizer(config, "sgd"), ALONE, 1, seed=0)
    with pytest.raises(CheckpointError, match=r"state of adamw, and optimizer\.name is sgd"):
        other.load(tmp_path, engine.layout, 1)


def test_a_state_of_a_parameter_that_is_missing_is_counted(config: Config, tmp_path: Path) -> None:
    config = with_optimizer(config, "adafactor")
    engine = engine_at(config, ALONE, 0, seed=0)
    stepped(engine, config, ALONE, range(1))
    write(engine, tmp_path)
    path = tmp_path / file_of(0)
    stored, header = load_file(path), {HEADER: json.dumps({"schema": 1, "offsets": offsets_of(engine)})}
    del stored["row_var/to_image.weight"], stored["step"]
    save_file(stored, path, header)
    with pytest.raises(CheckpointError, match="lack 17 numbers"):
        engine.load(tmp_path, engine.layout, 1)


def offsets_of(engine: Engine) -> dict[str, int]:
    return {name: 0 for group in engine.layout.groups for name, _ in group}


@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name in NAMES for stage in range(4) if stage not in STAGES[name]]
)
def test_an_optimizer_of_whole_parameters_is_refused_where_zero_cuts_them(
    config: Config, name: str, stage: int
) -> None:
    config = changed(with_optimizer(config, name), engine__zero_stage=stage)
    with pytest.raises(ConfigError, match=f"{name} needs whole parameters, and engine.zero_stage={stage} divides"):
        build_engine(config, build_model(config, VOCABULARY), ALONE)


def test_a_state_per_parameter_needs_whole_parameters() -> None:
    with pytest.raises(ValueError, match="needs whole_parameters=True"):
        OptimizerSpec(name="x", make=torch.optim.SGD, begin=lambda *_: {}, per_parameter=("norm",))


def members(config: Config, **changes: Any) -> list[tuple[set[str], float, float]]:
    """Returns the names, the weight decay and the factor of the learning rate of each group."""
    config = with_optimizer(config, "adamw", **changes)
    groups = parameter_groups(build_model(config, VOCABULARY), config.optimizer)
    return [(set(each.parameters), each.weight_decay, each.lr_scale) for each in groups]


def trained(config: Config) -> dict[str, Tensor]:
    return {name: each for name, each in build_model(config, VOCABULARY).named_parameters() if each.requires_grad}


def test_matrices_decay_and_vectors_do_not(config: Config) -> None:
    (decayed, decay, scale), (free, none, other_scale) = members(config)
    assert (decay, none, scale, other_scale) == (0.2, 0.0, 1.0, 1.0)
    assert decayed == {name for name, each in trained(config).items() if each.ndim >= 2}
    assert free == trained(config).keys() - decayed
    assert {"logit_scale", "local_logit_scale"} <= free


def test_embeddings_of_tokens_and_positions_need_not_decay(config: Config) -> None:
    (decayed, *_), (free, *_) = members(config, decay_embeddings=False)
    spared = members(config)[0][0] - decayed
    assert {name.rpartition(".")[2] for name in spared if name.startswith("image.")} == {"cls_token", "pos_embed"}
    text = {name for name in spared if name.startswith("text.")}
    assert {name.split(".")[-2] for name in text} == {"token_embedding", "position_embedding"}
    assert spared <= free
    assert "to_image.weight" in decayed


def test_parts_of_the_model_have_multiples_of_the_learning_rate(config: Config) -> None:
    scales = {"image": 0.5, "image.backbone.blocks": 0.25}
    found = members(config, lr_scales=scales)
    for names, _, scale in found:
        for name in names:
            inner = name.startswith("image.backbone.blocks.")
            assert scale == (0.25 if inner else 0.5 if name.startswith("image.") else 1.0), name
    assert set().union(*(names for names, *_ in found)) == trained(config).keys()
    assert [decay for _, decay, _ in found] == sorted((decay for _, decay, _ in found), reverse=True)


def test_layers_next_to_the_input_learn_more_slowly(config: Config) -> None:
    config = changed(config, model__image__options={**config.model.image.options, "depth": 2})
    scales = {name: scale for names, _, scale in members(config, layer_decay=0.5) for name in names}
    assert scales["image.backbone.pos_embed"] == 0.25
    assert scales["image.backbone.blocks.0.attn.qkv.weight"] == 0.5
    assert scales["image.backbone.blocks.1.attn.qkv.weight"] == 1
    assert scales["image.backbone.norm.weight"] == 1
    assert scales["to_image.weight"] == scales["logit_scale"] == 1
    text = {scale for name, scale in scales.items() if name.startswith("text.")}
    assert text == {0.25, 0.5, 1}  # Embeddings, the one layer, the norm after it.
    both = {
        name: scale
        for names, _, scale in members(config, layer_decay=0.5, lr_scales={"image": 0.5, "to_text": 2.0})
        for name in names
    }
    factors = {name: 0.5 if name.startswith("image.") else 2.0 if name.startswith("to_text.") else 1.0 for name in both}
    assert both == {name: factors[name] * scale for name, scale in scales.items()}


def test_muon_updates_matrices_and_adamw_the_rest(config: Config) -> None:
    config = with_optimizer(config, "muon")
    groups = parameter_groups(build_model(config, VOCABULARY), config.optimizer)
    by_muon = {name for group in groups if group.options["use_muon"] for name in group.parameters}
    rest = {name for group in groups if not group.options["use_muon"] for name in group.parameters}
    parameters = trained(config)
    assert by_muon | rest == parameters.keys()
    assert "to_image.weight" in by_muon
    embeddings = {name for name, each in parameters.items() if each.ndim == 2 and name in rest}
    assert {name.split(".")[-2] for name in embeddings} == {"token_embedding", "position_embedding"}
    assert {parameters[name].ndim for name in by_muon} == {2}
    assert [group.weight_decay for group in groups] == [0.2, 0.2, 0.0]


@pytest.mark.parametrize("part", ["imag", "image.backbone.block", "nothing"])
def test_a_part_that_the_model_has_not_is_named(config: Config, part: str) -> None:
    with pytest.raises(
        ConfigError, match=f"lr_scales has {part}, which is no trained part.*the parts are .*image, text"
    ):
        members(config, lr_scales={part: 0.5})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_group_learns_at_its_own_rate_under_every_stage(config: Config, stage: int) -> None:
    moved = [movements(each, stage) for each in (sgd_with(config, {}), sgd_with(config, {"image": 0.125}))]
    for name, wanted in moved[0].items():
        scale = 0.125 if name.startswith("image.") else 1.0
        torch.testing.assert_close(moved[1][name], scale * wanted, rtol=1e-3, atol=1e-7, msg=name)


def sgd_with(config: Config, lr_scales: dict[str, float]) -> Config:
    return with_optimizer(config, "sgd", lr_scales=lr_scales, weight_decay=0.0, lr=1.0)


def movements(config: Config, stage: int) -> dict[str, Tensor]:
    """Returns what the first step adds to each weight."""
    engine = engine_at(config, ALONE, stage, seed=0)
    before = weights_of(engine)
    after = stepped(engine, config, ALONE, range(1)).weights
    return dict(differences(before, after))


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in after.items():
        yield name, weight - before[name]
