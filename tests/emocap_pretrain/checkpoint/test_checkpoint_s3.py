"""Tests checkpoints on a real S3 server that is killed, and with saving processes that are killed."""

import multiprocessing
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from checkpoint_cases import ALONE, everything, read, saver_of
from emocap_shards.store import RetryConfig, Store, TransferConfig, open_store

from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.run_folder.attempts import Attempt
from launch.local_s3 import BUCKET, LocalS3

MIB = 1 << 20
PARTS = TransferConfig(part_bytes=5 * MIB)
PATIENCE = RetryConfig(deadline_s=60, first_wait_s=0.05, longest_wait_s=0.5)
WEIGHTS = random.Random(0).randbytes(24 * MIB)
LIMIT_S = 60.0

pytestmark = pytest.mark.slow


def opened(url: str) -> Store:
    return open_store(url, patience=PATIENCE, traffic=PARTS)


def write(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_bytes(b"{}")


def resumed(store: Store) -> int | None:
    with resumable(store, ALONE, everything) as found:
        if found is None:
            return None
        assert read(found[1]) == {"model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
        return found[0].step


def until_uploading(server: LocalS3, url: str) -> None:
    """Waits until the upload of the large file has begun; fails the test if none begins."""
    client, prefix, deadline = server.client(), url.split("/", 3)[3], time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
        if uploads:
            return
        time.sleep(0.005)
    pytest.fail("no upload began")


def test_a_server_that_is_killed_during_an_upload_costs_time_but_no_checkpoint(s3_server: LocalS3, s3: str) -> None:
    store = opened(s3)
    saver = saver_of(store, run_attempt=Attempt.begin(store), retention=Retention(1))
    saver.save(2, {"step": 2}, write)
    saver.wait()
    saver.save(4, {"step": 4}, write)
    until_uploading(s3_server, s3)
    s3_server.kill()
    trained = 0
    threading.Timer(1.5, s3_server.start).start()
    while not (done := saver.finished()):
        trained += 1
        time.sleep(0.01)
    assert trained > 50, "training continues meanwhile"
    assert done[0].step == 4
    saver.sweep(5)
    saver.wait()
    assert saver.swept() == [2]
    assert [each.step for each in committed(store)] == [4]
    assert damaged_files(store, done[0]) == []
    assert resumed(store) == 4


def save_4(url: str) -> None:
    store = opened(url)
    saver = saver_of(store, run_attempt=Attempt.begin(store))
    saver.save(4, {}, write)
    saver.wait()


def test_a_process_that_is_killed_during_an_upload_leaves_the_previous_checkpoint(s3_server: LocalS3, s3: str) -> None:
    store = opened(s3)
    first = saver_of(store, run_attempt=Attempt.begin(store))
    first.save(2, {}, write)
    first.wait()
    process = multiprocessing.get_context("fork").Process(target=save_4, args=(s3,))
    process.start()
    try:
        until_uploading(s3_server, s3)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [each.step for each in committed(store)] == [2]
    assert resumed(store) == 2
    second = saver_of(store, run_attempt=Attempt.begin(store), retention=Retention(1))
    second.save(4, {}, write)
    (done,) = second.wait()
    second.sweep(5)
    second.wait()
    assert done.attempt.startswith("00003-")
    assert resumed(store) == 4
    assert len(store.list("checkpoints")) == 3, "nothing of the killed attempt is left"


def test_many_attempts_that_commit_a_step_at_once_leave_one_manifest(s3: str) -> None:
    store = opened(s3)
    assert store.honours_conditions()
    savers = [saver_of(opened(s3)) for _ in range(6)]
    for number, saver in enumerate(savers):
        saver.save(4, {"saver": number}, lambda folder: (folder / "x").write_bytes(b"x") and None)
    outcomes = {done.attempt for saver in savers for done in saver.wait()}
    assert len(outcomes) == 1
    assert [each.attempt for each in committed(store)] == list(outcomes)
    assert len(store.list("checkpoints")) == 2, "the other savers have deleted their files"
