"""Tests runs that are trained on the tars of another program, from the check of their settings to a resumed attempt."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from pretrain_fakes import FakeRuntime, changed, stand_alone
from pydantic import ValidationError

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.state import state_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.dry_run.preflight import Devices, preflight
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training.build import build_stream, open_tars
from emocap_pretrain.training.loop import pretrain

FACES, TARS = 24, 4
ALONE = Devices(1, 1, on_gpu=False)


def add_member(path: Path, name: str, data: bytes) -> None:
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with four tars as img2dataset writes them. One of the 24 images is not one."""
    folder = tmp_path_factory.mktemp("tars")
    for number, record in enumerate(records(FACES, pixels=32)):
        assert record.caption
        flat = f"{record.caption.global_} His mouth is open. It is sunny."
        image = b"<html>" if number == 7 else record.image
        members = {
            record.extension: image,
            "txt": flat.encode(),
            "json": json.dumps(
                {"caption": flat, "url": "http://e.invalid/0", "emotion": record.labels["emotion"]}
            ).encode(),
        }
        for extension, data in members.items():
            add_member(folder / f"{number % TARS:05d}.tar", f"{number // TARS:09d}.{extension}", data)
    return folder


@pytest.fixture
def config(tiny_config: Config, tars: Path) -> Config:
    foreign = {"url": str(tars), "samples": FACES, "flat": True, "shuffle_buffer": 8}
    return changed(
        tiny_config, data={"webdataset": foreign, "workers": 0}, evaluation__url=None, checkpoint__every_steps=1000
    )


def metric(config: Config, name: str) -> list[float]:
    run_id = RunFolder(open_store(config.url)).run_id(config)
    assert run_id
    points = MlflowClient(config.tracking.uri).get_metric_history(run_id, name)
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def test_a_run_trains_on_tars_stops_and_resumes_with_a_fresh_pass_that_it_announces(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    stand_alone()
    assert preflight(config, ALONE).problems == []
    config = changed(config, steps=7)
    with caplog.at_level(logging.INFO):
        pretrain(config, FakeRuntime(stop_after=4))
    assert not [line for line in caplog.messages if "cannot continue" in line]
    assert any(line.startswith("skipped (1 in this process)") and "a web page" in line for line in caplog.messages)
    (first,) = committed(open_store(config.url))
    cursor = Cursor.from_json(state_of(first).cursor)
    assert cursor.position == 8 * (first.step % 3) > 0
    caplog.clear()
    with caplog.at_level(logging.INFO):
        pretrain(config, FakeRuntime())
    (note,) = [line for line in caplog.messages if "cannot continue" in line]
    assert f"for the last {FACES - cursor.position} of the 24 samples of epoch {cursor.epoch}, the run reads" in note
    assert len(metric(config, "loss")) == 7
    # One bad image in each pass; the count begins again with the attempt.
    assert max(metric(config, "data_skipped")) >= 1
    (dataset,) = (
        MlflowClient(config.tracking.uri)
        .get_run(RunFolder(open_store(config.url)).run_id(config))
        .inputs.dataset_inputs
    )
    assert json.loads(dataset.dataset.profile)["num_rows"] == FACES
    assert preflight(config, ALONE).problems == []
    moved = changed(config, data__webdataset__url=f"{config.data.webdataset.url}/0000[0-2].tar")
    (problem,) = preflight(moved, ALONE).problems
    assert "is not the data that" in problem
    assert "the names of the tars have changed" in problem


def test_captions_are_divided_into_parts_and_augmented_as_those_of_packed_data(config: Config) -> None:
    stream = build_stream(config, open_tars(config), Rank(), Cursor())
    samples = stream.first(8)
    assert {sample.caption.local for sample in samples if sample.caption} == {("His mouth is open.",)}
    assert all(part.texts(sample.caption) for part in PARTS for sample in samples if sample.caption)
    plain = changed(config, data__webdataset__flat=False)
    (caption,) = {sample.caption.local for sample in build_stream(plain, open_tars(plain), Rank(), Cursor()).first(8)}
    assert caption == ()


def test_a_sample_without_a_label_that_the_objective_reads_is_left_out(config: Config) -> None:
    label = {"name": "emotion", "classes": ["joy", "fear"]}
    tars = open_tars(changed(config, objective__labels=[label]))
    assert tars
    assert tars.usable(FACES)[0] == FACES - 1
    missing = open_tars(changed(config, objective__labels=[{"name": "age"}]))
    assert missing
    used, skipped = missing.usable(FACES)
    assert (used, len(skipped)) == (0, FACES)
    assert "there is no column 'age'" in skipped[0].reason


def test_the_check_before_a_start_says_what_is_not_promised_and_refuses_what_cannot_run(
    config: Config, tars: Path, tmp_path: Path
) -> None:
    found = preflight(config, ALONE)
    assert found.problems == []
    assert found.notes[0].startswith("data.webdataset streams 4 tars as they are: a run that resumes within an epoch")
    assert "1 of the first 24 samples" in found.notes[1]
    plan = " ".join(RunPlan.of(config, 1, on_gpu=False).text().split())
    assert f"tars at {tars}; an epoch has 24 samples, as stated" in plan
    # On Ray, the number of ranks is known only when a session opens.
    with pytest.raises(PlanError, match="4 tars are too few for 2 ranks with 3 loader processes each"):
        build_stream(changed(config, data__workers=3), open_tars(config), Rank(0, 2, 0, 2), Cursor())
    (few,) = preflight(changed(config, global_batch=16), Devices(5, 5, on_gpu=False)).problems
    assert few.startswith("data.webdataset: 4 tars are too few for 5 ranks")
    (none,) = preflight(changed(config, data__webdataset__url=str(tmp_path / "x-*.tar")), ALONE).problems
    assert none.startswith("data.webdataset: ")
    assert none.endswith("matches no file; check it.")
    add_member(tmp_path / "silent.tar", "0.png", next(iter(records(1, pixels=32))).image)
    (unusable,) = preflight(changed(config, data__webdataset__url=str(tmp_path / "silent.tar")), ALONE).problems
    assert unusable.endswith(
        "silent.tar has no sample that can be used, the first one: there is no column 'global', but 'key', 'image'; "
        "data.webdataset says which member is which."
    )
    (short,) = preflight(changed(config, data__drop_last=True, global_batch=25), ALONE).problems
    assert short.startswith("data.webdataset.samples=24 fill no batch of global_batch=25")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data__url": "/d"}, "give either url, the one dataset, or mix"),
        ({"data__balance": {"label": "emotion"}}, "balance needs the labels of all samples"),
        ({"data__error_budget": 3}, "error_budget counts damaged samples by their place in an index"),
        ({"data__shuffle_window": 100}, "set webdataset.shuffle_buffer instead"),
        ({"data__webdataset__url": "pipe:curl -s http://e.invalid/a.tar"}, "pipe: URLs are not opened"),
        ({"data__webdataset__url": "{a,pipe:cat b}.tar"}, "pipe: URLs are not opened"),
        ({"data__webdataset__url": "a.tar::b.tar"}, "and not with ::"),
        ({"data__webdataset": {"url": "a.tar"}}, "samples\n  Field required"),
        ({"health__nonfinite": "rollback"}, "does not give the same batch again"),
        ({"health__on_spike": "rollback", "health__spike": 5}, "does not give the same batch again"),
        (
            {"objective__labels": [{"name": "e", "classes": ["a", "b"], "balance": "effective"}]},
            "the balance of e needs the number of samples of each class",
        ),
    ],
)
def test_settings_that_need_an_index_are_refused(config: Config, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError) as error:
        changed(config, **changes)
    assert why in str(error.value)
