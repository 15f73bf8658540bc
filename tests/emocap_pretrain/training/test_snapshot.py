import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engine_batches import VOCABULARY, batch_of
from engine_jobs import engine_at, stepped
from pretrain_fakes import changed, stand_alone
from safetensors.torch import load_file, save_file

from emocap_pretrain.checkpoint.layout import HEADER, WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import file_of

ALONE = RankGroup(Rank(), "cpu", None)
FILES = (WEIGHTS, file_of(0))


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_snapshot_is_of_its_step_however_late_another_thread_writes_it(
    tiny_config: Config, stage: int, tmp_path: Path
) -> None:
    engine = engine_at(tiny_config, ALONE, stage)
    stepped(engine, tiny_config, ALONE, range(1))
    snapshot = engine.snapshot()
    snapshot.write(tmp_path / "at once")
    for step in (1, 2):
        engine.train(batch(tiny_config, step))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(snapshot.write, tmp_path / "late").result()
    for name in FILES:
        assert (tmp_path / "late" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
    snapshot.release()
    engine.snapshot().write(tmp_path / "next")
    for name in FILES:
        assert (tmp_path / "next" / name).read_bytes() != (tmp_path / "late" / name).read_bytes()


def batch(config: Config, step: int) -> Batch:
    return batch_of(config, step, range(config.global_batch))


def test_no_second_snapshot_is_taken_before_the_first_is_released(tiny_config: Config) -> None:
    engine = engine_at(tiny_config, ALONE, 1)
    first = engine.snapshot()
    with pytest.raises(CheckpointError, match="release it before the next"):
        engine.snapshot()
    first.release()
    assert engine.snapshot() is first


def test_a_rank_s_file_is_flat_floats_by_state_and_parameter_and_global_states(
    tiny_config: Config, tmp_path: Path
) -> None:
    engine = engine_at(tiny_config, ALONE, 2)
    engine.snapshot().write(tmp_path)
    stored = load_file(tmp_path / file_of(0))
    step = stored.pop("step")
    sizes = dict(pair for group in engine.layout.groups for pair in group)
    assert {name: len(each) for name, each in stored.items()} == {
        f"{field}/{name}": size for field in ("exp_avg", "exp_avg_sq") for name, size in sizes.items()
    }
    assert step.shape == ()
    assert {each.dtype for each in stored.values()} == {torch.float32}


def test_weights_of_another_model_are_one_clear_line(tiny_config: Config, tmp_path: Path) -> None:
    engine_at(tiny_config, ALONE, 1).snapshot().write(tmp_path)
    other = build_model(changed(tiny_config, model__embedding=8), VOCABULARY)
    with pytest.raises(CheckpointError, match=r"to_image.weight has shape \(16, 32\) there and \(8, 32\) here"):
        fill(other, tmp_path / WEIGHTS)


def test_an_engine_of_another_model_or_with_files_missing_loads_nothing(tiny_config: Config, tmp_path: Path) -> None:
    engine = engine_at(tiny_config, ALONE, 1)
    engine.snapshot().write(tmp_path)
    other = engine_at(changed(tiny_config, model__embedding=8), ALONE, 1)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        other.load(tmp_path, engine.layout, 1)
    part = load_file(tmp_path / file_of(0))
    (name, size), *rest = [pair for group in engine.layout.groups for pair in group]
    del part[f"exp_avg/{name}"], part[f"exp_avg_sq/{name}"]
    header = json.dumps({"updates": 1, "offsets": {each: 0 for each, _ in rest}})
    save_file(part, tmp_path / file_of(0), {HEADER: header})
    with pytest.raises(CheckpointError, match=f"lack {2 * size} numbers"):
        engine.load(tmp_path, engine.layout, 1)
    assert engine.step == 0
