"""Tests runs on datasets in which some or all samples have labels and no caption."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emocap_shards.errors import DamagedSample
from emocap_shards.manifest import read_manifest
from emocap_shards.sample import Sample
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from pretrain_fakes import FakeRuntime, changed, stand_alone

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.loader import Collate
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.dry_run.preflight import preflight
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.tracking import pictures
from emocap_pretrain.training.loop import pretrain

OFF = {"objective__global": 0.0, "objective__summary": 0.0, "objective__local": 0.0}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Returns a function that packs rendered faces, the first of which have no caption."""

    def make(without: int, count: int = 12) -> str:
        folder = tmp_path_factory.mktemp("faces")
        found = [
            replace(each, caption=None) if number < without else each
            for number, each in enumerate(records(count, seed=3, pixels=32))
        ]
        write_shards(found, folder / "packed")
        return str(folder / "packed")

    return make


def on_labels(config: Config, url: str, **more: object) -> Config:
    objective: list[dict[str, Any]] = [{"name": "valence"}]
    values: dict[str, object] = {
        "data__url": url,
        "evaluation__url": url,
        "objective__labels": objective,
        **OFF,
        **more,
    }
    return changed(config, **values)


def test_a_run_on_labels_alone_needs_no_captions(tiny_config: Config, pack: Callable[..., str]) -> None:
    stand_alone()
    url = pack(12)
    config = on_labels(
        tiny_config,
        url,
        steps=2,
        global_batch=6,
        evaluation__tasks=["fine_tuned_numbers", "zero_shot"],
        evaluation__numbers=["valence"],
    )
    assert preflight(config).problems == []
    pretrain(config, FakeRuntime())
    report = RunFolder(open_store(config.url)).report(2)
    assert report is not None
    assert [result.task for result in report.results] == ["fine_tuned_numbers", "zero_shot"]


def test_captions_in_training_are_refused_in_one_line_that_counts(
    tiny_config: Config, pack: Callable[..., str]
) -> None:
    url = pack(5)
    (line,) = preflight(changed(tiny_config, data__url=url)).problems
    assert line.startswith(f"5 of the 12 samples of {url} have no caption, which objective.global, ")
    assert "\n" not in line
    mix = [{"url": url, "weight": 1.0}, {"url": pack(0), "weight": 1.0}]
    (line,) = preflight(changed(tiny_config, data={"mix": mix})).problems
    assert line.startswith(f"5 of the 12 samples of {url} have no caption")


def test_a_task_that_needs_captions_is_refused_before_anything_starts(pack: Callable[..., str]) -> None:
    url = pack(12)
    with pytest.raises(ConfigError, match=r"the 12 samples of .* have labels and no caption, which retrieval needs"):
        tasks.prepare(EvaluationConfig(url=url, tasks=("retrieval",)))
    assert tasks.prepare(EvaluationConfig(url=url, tasks=("zero_shot",))) == []


def test_a_task_says_how_many_samples_it_leaves_out(pack: Callable[..., str]) -> None:
    (note,) = tasks.prepare(EvaluationConfig(url=(url := pack(5)), tasks=("retrieval",)))
    assert note == f"retrieval: 5 of the 12 samples of {url} have no caption and are left out."


def samples_of(url: str) -> list[Sample]:
    steps = Stream(url=url, global_batch=read_manifest(url).samples, shuffle=False, epochs=1).steps()
    return [sample for portion in steps for sample in portion.samples if not isinstance(sample, DamagedSample)]


def test_a_batch_of_captions_names_the_sample_that_has_none(pack: Callable[..., str]) -> None:
    tokenizer = Tokenizer.trained_on([], 300)
    lengths = {part.name: 8 for part in PARTS}
    collate = Collate(tokenizer, PARTS, lengths, pixels=16, seed=0, crop=1.0, flip=1.0)
    samples = [collate.prepare(each) for each in samples_of(pack(1, 2))]
    with pytest.raises(DataError, match=f"sample {samples[0].key!r} has no caption"):
        collate(samples)
    batch = replace(collate, parts=())(samples)
    assert batch.images.shape == (2, 3, 16, 16)


def test_an_image_without_a_caption_may_be_mirrored(pack: Callable[..., str]) -> None:
    (sample,) = samples_of(pack(1, 1))
    never = Collate(Tokenizer.trained_on([], 300), (), {}, pixels=32, seed=0, crop=1.0, flip=0.0)
    straight = torch.from_numpy(never.prepare(sample).image.copy())
    mirrored = torch.from_numpy(replace(never, flip=1.0).prepare(sample).image.copy())
    assert torch.equal(straight.flip(1), mirrored)


def test_the_preview_shows_labels_where_there_is_no_caption(pack: Callable[..., str], tmp_path: Path) -> None:
    pictures.preview(samples_of(pack(1, 2)), tmp_path / "a.png", of="a run")
    assert (tmp_path / "a.png").stat().st_size > 1000
