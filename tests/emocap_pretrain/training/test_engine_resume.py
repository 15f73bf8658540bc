"""Tests that a job resumes state that another one saved, with other numbers of ranks and other ZeRO stages."""

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_jobs import Place, Steps, moved, resumed, saved
from frozen_cases import frozen_config
from gloo_ranks import on_gloo
from optimizer_cases import with_optimizer
from pretrain_fakes import changed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emocap_pretrain.checkpoint.layout import HEADER, WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.interop.average import _whole

STAGES = (0, 1, 2, 3)
Case = tuple[Place, Place]  # Saved by, loaded by.


def check(
    cases: Iterable[Case],
    config: Config,
    root: Path,
    rewrite: Callable[[Path, dict[str, Any]], None] = lambda _folder, _layout: None,
) -> None:
    cases = sorted(cases, key=lambda case: case[1])
    before: dict[Place, tuple[dict[str, Any], Steps]] = {}
    for ranks, places in groupby(sorted({source for source, _ in cases}), key=lambda place: place.ranks):
        found = on_gloo(ranks, saved, config, [place.stage for place in places], root)[0]
        for stage, result in found.items():
            place = Place(ranks, stage)
            rewrite(place.folder(root), result[0])
            before[place] = result
    for ranks, group in groupby(cases, key=lambda case: case[1].ranks):
        pairs = list(group)
        sources = [(target.stage, source, before[source][0]) for source, target in pairs]
        for (source, target), steps in zip(pairs, on_gloo(ranks, resumed, config, sources, root)[0], strict=True):
            compare(steps, before[source][1], exactly=source == target)


def compare(steps: Steps, unbroken: Steps, *, exactly: bool) -> None:
    assert steps.weights.keys() == unbroken.weights.keys()
    if exactly:
        assert steps.rows == unbroken.rows
        assert all(weight.equal(unbroken.weights[name]) for name, weight in steps.weights.items())
        return
    for row, wanted in zip(steps.rows, unbroken.rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    for name, weight in steps.weights.items():
        torch.testing.assert_close(weight, unbroken.weights[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    # Nine rows over two or four ranks are uneven.
    return changed(tiny_config, global_batch=9, steps=3)


def test_a_job_resumes_to_the_bit_at_its_own_size_and_within_rounding_at_another(
    config: Config, tmp_path: Path
) -> None:
    same = [(Place(2, stage), Place(2, stage)) for stage in STAGES]
    other_stage = [(Place(2, 0), Place(2, 3)), (Place(2, 3), Place(2, 1))]
    other_ranks = [(Place(3, 1), Place(2, 2)), (Place(2, 2), Place(3, 3)), (Place(3, 1), Place(1, 0))]
    check([*same, *other_stage, *other_ranks], config, tmp_path)


@pytest.mark.parametrize("case", ["image", "blocks", "adapters"])
def test_a_model_with_frozen_parts_resumes_at_any_size_and_stage(
    tiny_config: Config, tmp_path: Path, case: str
) -> None:
    same = [(Place(2, stage), Place(2, stage)) for stage in STAGES]
    others = [(Place(2, 3), Place(1, 0)), (Place(2, 0), Place(3, 3)), (Place(2, 2), Place(3, 1))]
    check([*same, *others], changed(frozen_config(tiny_config, case), steps=3), tmp_path)


def as_version_0_1_0(folder: Path, layout: dict[str, Any]) -> None:
    """Rewrites the files and the layout to the form of version 0.1.0."""
    del layout["optimizer"]
    for path in (folder / "engine").iterdir():
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()[HEADER])["offsets"]
        stored = load_file(path)
        updates = int(stored.pop("step"))
        save_file(stored, path, {HEADER: json.dumps({"updates": updates, "offsets": offsets})})


def test_files_of_version_0_1_0_are_read_by_any_number_of_ranks_at_any_stage(config: Config, tmp_path: Path) -> None:
    targets = [Place(1, 0), Place(2, 1), Place(2, 3)]
    check([(Place(2, 2), target) for target in targets], config, tmp_path, as_version_0_1_0)


def test_sgd_continues_at_another_number_of_ranks_and_another_stage(config: Config, tmp_path: Path) -> None:
    others = [(Place(1, 1), Place(2, 3)), (Place(2, 2), Place(1, 0))]
    check([(Place(2, 2), Place(2, 2)), *others], with_optimizer(config, "sgd", layer_decay=0.5), tmp_path)


def test_adafactor_continues_at_another_number_of_ranks(config: Config, tmp_path: Path) -> None:
    cases = [(Place(1, 0), Place(2, 0)), (Place(2, 0), Place(1, 0)), (Place(2, 0), Place(2, 0))]
    check(cases, with_optimizer(config, "adafactor"), tmp_path)


def test_schedule_free_continues_at_another_number_of_ranks_and_another_stage(config: Config, tmp_path: Path) -> None:
    others = [(Place(1, 1), Place(2, 3)), (Place(2, 3), Place(1, 0))]
    check([(Place(2, 2), Place(2, 2)), *others], with_optimizer(config, "schedule_free", layer_decay=0.5), tmp_path)


def test_the_state_of_lion_moves_to_other_ranks_to_the_bit(config: Config, tmp_path: Path) -> None:
    # The further steps cannot be compared: where the gradient is rounding noise, Lion makes full steps of either sign.
    config, source = with_optimizer(config, "lion"), Place(2, 2)
    layout, _ = on_gloo(2, saved, config, [2], tmp_path)[0][2]
    before = whole_state(source.folder(tmp_path))
    for target in (Place(1, 0), Place(3, 3)):
        on_gloo(target.ranks, moved, config, target.stage, source.folder(tmp_path), layout, target.folder(tmp_path))
        after = whole_state(target.folder(tmp_path))
        assert before.keys() == after.keys()
        assert all(each.equal(after[name]) for name, each in before.items())


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the momentum of each parameter, put together from the files of all ranks."""
    weights = load_file(folder / WEIGHTS)
    return _whole(weights, folder, "exp_avg", "momentum")


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_an_optimizer_of_whole_parameters_continues_at_another_number_of_ranks(
    config: Config, tmp_path: Path, name: str
) -> None:
    cases = [(Place(1, 0), Place(2, 0)), (Place(2, 0), Place(1, 0)), (Place(2, 0), Place(2, 0))]
    check(cases, with_optimizer(config, name), tmp_path)


@pytest.mark.slow
def test_every_size_and_stage_writes_the_same_state_and_reads_it(config: Config, tmp_path: Path) -> None:
    # Which elements a rank reads from which file is arithmetic that test_layout.py tests for all pairs. So it is enough
    # here that one job reads the files of every job, and that every job reads the files of one.
    places = [Place(ranks, stage) for ranks in (1, 2, 3, 4) for stage in STAGES]
    written = [(place, Place(1, 0)) for place in places]
    read = [(Place(3, 2), place) for place in places]
    check({*written, *read}, config, tmp_path)
