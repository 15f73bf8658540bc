import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emocap_shards.cursor import Cursor
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.checkpoint.layout import TOKENIZER, WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.checkpoint.state import Progress
from emocap_pretrain.config import stored
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.interop.settings import completed
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.training.session import Session, open_session

ALONE = RankGroup(Rank(), "cpu", None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    stand_alone()
    torch.set_num_threads(1)
    return tiny_config


def begun(config: Config, world: RankGroup = ALONE) -> Session:
    return open_session(config, world, Attempt.begin(open_store(config.url)), world)


def kept(session: Session, cursor: Cursor, progress: Progress) -> Checkpoint:
    """Saves a checkpoint with this cursor and returns it."""
    session.save(cursor, progress)
    (saved,) = session.saver.wait()
    return saved


def ended(session: Session) -> None:
    with session:
        pass


def weights_of(session: Session) -> dict[str, torch.Tensor]:
    snapshot = session.engine.snapshot()
    weights = {name: tensor.clone() for name, tensor in snapshot.weights.items()}
    snapshot.release()
    return weights


def stepped(session: Session, steps: int) -> Cursor:
    """Trains this many steps and returns the cursor after them."""
    cursor = Cursor()
    for _ in range(steps):
        batch, cursor, _ = next(session.batches)
        session.engine.train(batch)
    return cursor


def test_a_new_session_begins_at_step_0_with_a_tracked_run_and_a_look_at_the_samples(config: Config) -> None:
    session = begun(config)
    ended(session)
    assert session.engine.step == 0
    run = MlflowClient(config.tracking.uri).get_run(session.tracker.run_id)
    assert run.data.params["url"] == config.url
    artifacts = MlflowClient(config.tracking.uri).list_artifacts(session.tracker.run_id, "pictures")
    assert [each.path for each in artifacts] == ["pictures/samples.png"]


def test_a_warm_start_is_a_new_run_with_its_parent_in_the_folder_and_in_mlflow_and_resumes_with_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(config)
    parent = Parent(config.url, 0, first.tracker.run_id, "0123")
    ended(first)
    client = MlflowClient(config.tracking.uri)
    for name, recorded, above in (
        ("known", parent, parent.run_id),
        ("elsewhere", replace(parent, run_id="f" * 32), None),
        ("nonsense", replace(parent, run_id="../no id"), None),
    ):
        warm = changed(config, url=str(tmp_path / name))
        store = open_store(warm.url)
        monkeypatch.setattr(StartingPoint, "parent", recorded)
        session = begun(warm)
        kept(session, Cursor(), Progress())
        ended(session)
        tags = client.get_run(session.tracker.run_id).data.tags
        assert {key: value for key, value in tags.items() if key.startswith("parent.")} == recorded.tags()
        assert tags.get("mlflow.parentRunId") == above
        again = begun(warm)
        ended(again)
        assert RunFolder(store).warm_start() == recorded
        assert again.tracker.run_id == session.tracker.run_id
    # A copy of the folder began with the same weights; in MLflow it is a child of the run that was copied.
    copy = changed(config, url=str(shutil.copytree(tmp_path / "known", tmp_path / "copy")))
    copied = begun(copy)
    ended(copied)
    assert RunFolder(open_store(copy.url)).warm_start() == parent
    tags = client.get_run(copied.tracker.run_id).data.tags
    assert tags["mlflow.parentRunId"] == RunFolder(open_store(tmp_path / "known")).run_id(config)
    assert tags["parent.run_id"] == parent.run_id


def test_a_run_begins_with_the_weights_of_another_run_and_needs_it_no_more(config: Config, tmp_path: Path) -> None:
    first = begun(config)
    stepped(first, 2)
    saved = kept(first, Cursor(), Progress())
    weights = weights_of(first)
    ended(first)
    tree = {**config.model_dump(mode="json"), "url": str(tmp_path / "second"), "model": {"from": f"run:{config.url}"}}
    warm = completed(Config.model_validate(tree))
    assert warm.model.from_ == f"run:{config.url}@{saved.step}"  # A later checkpoint of the first run changes nothing.
    second = begun(warm)
    torch.testing.assert_close(weights_of(second), weights, atol=0, rtol=0)
    assert second.engine.step == 0
    kept(second, Cursor(), Progress())
    ended(second)
    expected = Parent(config.url, saved.step, first.tracker.run_id, saved.digest)
    assert RunFolder(open_store(warm.url)).warm_start() == expected
    shutil.rmtree(config.url)
    again = begun(completed(Config.model_validate(tree)))
    ended(again)
    assert again.engine.step == 0
    assert RunFolder(open_store(warm.url)).warm_start() == expected


def test_what_is_cut_of_the_texts_is_said_and_tracked_before_the_first_step(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    classes = {"joy": "a face with raised cheeks and lips whose corners are drawn back and up, as it is in delight"}
    session = begun(changed(config, evaluation__classes=classes))
    ended(session)
    (line,) = [each for each in caplog.messages if each.startswith("texts that are cut")]
    assert line.startswith("texts that are cut, of the first 24 samples: global ")
    assert "prompts 100 % (up to " in line
    metrics = MlflowClient(config.tracking.uri).get_run(session.tracker.run_id).data.metrics
    assert metrics["cut/prompts"] == 1.0
    assert {"cut/global", "cut/local", "cut/summary"} <= metrics.keys()
    caplog.clear()
    ended(begun(changed(config, evaluation__classes=classes)))
    assert not any("texts that are cut" in each for each in caplog.messages)


def test_equal_seeds_begin_with_equal_weights_and_samples(config: Config, tmp_path: Path) -> None:
    sessions = [
        begun(changed(config, url=str(tmp_path / name), seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, same, other = [weights_of(session) for session in sessions]
    assert all(first[name].equal(same[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)
    images = [next(session.batches)[0].images for session in sessions]
    assert images[0].equal(images[1])
    assert not images[0].equal(images[2])


def test_a_saved_session_opens_where_it_was_left(config: Config) -> None:
    session = begun(config)
    cursor = stepped(session, 4)
    assert cursor == Cursor(1, 8)
    kept(session, cursor, Progress())
    wanted, wanted_after, _ = next(session.batches)
    ended(session)
    again = begun(config)
    batch, after, _ = next(again.batches)
    ended(again)
    assert again.engine.step == 4
    assert again.tracker.run_id == session.tracker.run_id
    assert again.tokenizer.to_json() == session.tokenizer.to_json()
    assert after == wanted_after
    assert batch.images.equal(wanted.images)
    assert batch.texts["global"].ids.equal(wanted.texts["global"].ids)
    weights = weights_of(session)
    assert all(weight.equal(weights[name]) for name, weight in weights_of(again).items())


def test_the_note_on_another_number_of_steps_is_about_the_checkpoint_that_is_intact(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    session = begun(config)
    for _ in range(2):
        kept(session, stepped(session, 2), Progress())
    ended(session)
    store = open_store(config.url)
    newest, former = committed(store)
    assert (newest.step, former.step) == (4, 2)
    path = f"{newest.folder}/{WEIGHTS}"
    store.put(path, store.read(path)[::-1])  # The size stays, so only the digest tells.
    caplog.clear()
    ended(begun(changed(config, steps=8)))
    skipped, note = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert skipped.startswith("the checkpoint of step 4 in ")
    assert note.startswith("steps was 4 until step 2 and is 8 now: the learning rate of step 3 is ")


def test_a_checkpoint_says_whose_it_is_and_restores_without_its_run(config: Config) -> None:
    session = begun(config)
    checkpoint = kept(session, stepped(session, 1), Progress(2.5, {"loss": 0.5}))
    ended(session)
    assert (checkpoint.ranks, checkpoint.state) == (
        1,
        {
            "config": stored.dump(config),
            "cursor": {"epoch": 0, "position": 8},
            "data_digest": session.data_digest,
            "engine": json.loads(json.dumps(session.engine.layout.to_json())),
            "guard": session.guard.state(),
            "progress": {"seconds": 2.5, "row": {"loss": 0.5}},
            "run_id": session.tracker.run_id,
        },
    )
    assert {WEIGHTS, TOKENIZER} < {file.path for file in checkpoint.files}
    restored = restore(config.url)
    assert (restored.step, restored.config) == (1, config)
    with pytest.raises(CheckpointError, match="no checkpoint of step 9; steps: 1"):
        restore(config.url, step=9)
    weights = weights_of(session)
    assert all(weight.equal(weights[name]) for name, weight in restored.model.state_dict().items())
    with downloaded(session.store, checkpoint, TOKENIZER.__eq__) as folder:
        assert (folder / TOKENIZER).read_text() == session.tokenizer.to_json()


def test_retention_is_the_config_s(config: Config) -> None:
    config = changed(config, checkpoint__keep_last=1, checkpoint__keep_every=2)
    session = begun(config)
    for _ in range(4):
        kept(session, stepped(session, 1), Progress())
        session.sweep()
    session.saver.wait()
    assert [each.step for each in committed(session.store)] == [4, 3, 2], "no later step has used the weights of step 4"
    session.sweep(ended=True)
    session.saver.wait()
    ended(session)
    assert [each.step for each in committed(session.store)] == [4, 2]


@torch.no_grad()
def break_weights(session: Session) -> None:
    next(iter(session.engine._engine.module.parameters())).fill_(torch.nan)


def test_a_state_that_is_not_finite_is_not_committed(config: Config) -> None:
    session = begun(config)
    kept(session, stepped(session, 1), Progress())
    cursor = stepped(session, 1)
    break_weights(session)
    session.save(cursor, Progress())
    with pytest.raises(CheckpointError, match=r"step 2 was not saved: rank 0: .* is not finite"):
        session.saver.wait()
    ended(session)
    assert [each.step for each in committed(session.store)] == [1]


def test_other_data_than_the_checkpoint_s_are_refused(config: Config) -> None:
    session = begun(config)
    checkpoint = kept(session, stepped(session, 1), Progress())
    ended(session)
    path = "checkpoints/step-00000001/manifest.json"
    session.store.put(path, replace(checkpoint, state={**checkpoint.state, "data_digest": "other"}).dump())
    with pytest.raises(CheckpointError, match="is not the data that"):
        begun(config)
    assert session.store.exists(path)


def test_more_ranks_than_samples_are_refused_before_anything_is_written(config: Config) -> None:
    with pytest.raises(ConfigError, match="without a sample"):
        begun(changed(config, global_batch=1), RankGroup(Rank(0, 2), "cpu", None))
    assert open_store(config.url).list("checkpoints") == []
