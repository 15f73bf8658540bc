import logging
import multiprocessing
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from emocap_shards.errors import ConditionFailed, NotFound, StoreError
from emocap_shards.store import RetryConfig, TransferConfig, open_store, retry

from launch.local_s3 import BUCKET

MIB = 1 << 20
PARTS = TransferConfig(part_bytes=5 * MIB)
QUICK = RetryConfig(deadline_s=60, first_wait_s=0.02, longest_wait_s=0.3)
HASTY = replace(QUICK, connect_timeout_s=0.5, read_timeout_s=0.5)


def noise(count, seed=0):
    return random.Random(seed).randbytes(count)


def tail_of(proxy, url):
    """Returns the part of the requests' targets that names this test's folder."""
    return [line for line in proxy.requests if url.rsplit("/", 1)[-1] in line]


def test_large_objects_travel_in_parts_both_ways(s3, faulty_s3, tmp_path):
    store, data = open_store(s3, traffic=PARTS), noise(23 * MIB)
    (tmp_path / "here").write_bytes(data)
    store.put_file("large", tmp_path / "here")
    store.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == store.read("large") == data
    assert store.read_range("large", 3, 17 * MIB) == data[3 : 17 * MIB]
    assert sum("partNumber=" in line for line in tail_of(faulty_s3, s3)) == 5


def test_large_bytes_travel_in_parts(s3):
    store, data = open_store(s3, traffic=PARTS), noise(11 * MIB)
    store.put("large", data)
    assert store.read_versioned("large")[0] == data


def test_ranges_cost_one_get_each_and_no_head(s3, faulty_s3):
    store, data = open_store(s3), noise(100_000)
    store.put("x", data)
    faulty_s3.forget()
    spans = [("x", start, start + 1000) for start in range(0, 100_000, 1000)]
    assert b"".join(store.read_ranges(spans)) == data
    assert [line.split()[0] for line in faulty_s3.requests] == ["GET"] * 100


def test_requests_in_flight_are_bounded(s3, faulty_s3):
    store = open_store(s3, traffic=TransferConfig(in_flight=5))
    store.put("x", noise(1000))
    faulty_s3.delay_s = 0.05
    faulty_s3.inject("delay")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: store.read_ranges([("x", at, at + 1) for at in range(20)]), range(3)))
    assert faulty_s3.most_at_once == 5


def test_only_the_ranges_that_failed_are_asked_again(s3, faulty_s3):
    store, data = open_store(s3, patience=QUICK), noise(20_000)
    store.put("x", data)
    faulty_s3.forget()
    faulty_s3.inject("truncate", count=3)
    assert b"".join(store.read_ranges([("x", at, at + 1000) for at in range(0, 20_000, 1000)])) == data
    assert faulty_s3.counts == {"truncate": 3, "none": 20}


@pytest.mark.parametrize("fault", ["delay", "stall", "reset", "lost_answer", "truncate", "500", "503", "429"])
def test_every_byte_is_right_under_faults_in_three_of_ten_requests(s3, faulty_s3, tmp_path, fault):
    store = open_store(s3, patience=HASTY if fault == "stall" else QUICK, traffic=PARTS)
    faulty_s3.inject(fault, probability=0.1 if fault == "stall" else 0.3, methods="GET PUT POST HEAD DELETE")
    bodies = {f"b/{number}": noise(1 + number * 3001, number) for number in range(12)}
    for path, body in bodies.items():
        store.put(path, body)
    store.put_if_absent("marker", b"1")
    store.put_if_match("marker", b"2", store.read_versioned("marker")[1])
    (tmp_path / "here").write_bytes(noise(11 * MIB))
    store.put_file("large", tmp_path / "here")
    spans = [(path, at, at + 999) for path in bodies for at in range(0, len(bodies[path]), 3000)]
    assert store.read_ranges(spans) == [bodies[path][start:end] for path, start, end in spans]
    assert {entry.path: store.read(entry.path) for entry in store.list("b")} == bodies
    store.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
    store.delete_tree("b")
    assert [entry.path for entry in store.list()] == ["large", "marker"]
    assert faulty_s3.counts[fault] > 5


def test_flipped_bits_of_a_whole_object_are_seen_and_read_again(s3, faulty_s3):
    store, data = open_store(s3, patience=QUICK), noise(50_000)
    store.put("x", data)
    faulty_s3.inject("flip", count=2, containing="/x")
    assert store.read("x") == data
    assert faulty_s3.counts["flip"] == 2


def test_flipped_bits_of_a_range_are_for_the_caller_to_see(s3, faulty_s3):
    store, data = open_store(s3), noise(50_000)
    store.put("x", data)
    faulty_s3.inject("flip", count=1)
    assert store.read_range("x", 10, 40_000) != data[10:40_000]


@pytest.mark.parametrize("fault", ["lost_answer", "503"])
def test_the_only_creator_wins_although_an_answer_was_lost(s3, faulty_s3, fault):
    store = open_store(s3, patience=QUICK)
    faulty_s3.inject(fault, count=1, methods="PUT")
    store.put_if_absent("x", b"mine")
    assert store.read("x") == b"mine"
    assert faulty_s3.counts[fault] == 1


def test_a_rival_with_the_same_bytes_is_still_a_rival(s3, faulty_s3):
    store = open_store(s3, patience=QUICK)
    store.put_if_absent("x", b"same")
    faulty_s3.inject("503", count=1, methods="PUT")
    with pytest.raises(ConditionFailed, match="exists already"):
        store.put_if_absent("x", b"same")


def test_a_swap_is_made_once_although_its_answer_was_lost(s3, faulty_s3):
    store = open_store(s3, patience=QUICK)
    store.put("x", b"1")
    version = store.read_versioned("x")[1]
    faulty_s3.inject("lost_answer", count=1, methods="PUT")
    store.put_if_match("x", b"2", version)
    assert store.read("x") == b"2"
    with pytest.raises(ConditionFailed, match="read it again"):
        store.put_if_match("x", b"3", version)


def test_an_upload_ends_once_although_the_answer_to_its_end_was_lost(s3, faulty_s3, tmp_path):
    store, data = open_store(s3, patience=QUICK, traffic=PARTS), noise(11 * MIB)
    (tmp_path / "here").write_bytes(data)
    faulty_s3.inject("lost_answer", count=1, methods="POST", containing="uploadId=")
    store.put_file("x", tmp_path / "here")
    assert store.read("x") == data
    assert sum(line.endswith("?uploads") for line in faulty_s3.requests) == 1


def test_an_upload_that_fails_leaves_no_parts(s3, faulty_s3, s3_server, tmp_path):
    store = open_store(s3, patience=RetryConfig(deadline_s=0), traffic=PARTS)
    (tmp_path / "here").write_bytes(noise(11 * MIB))
    faulty_s3.inject("500", methods="PUT", containing="partNumber=2")
    with pytest.raises(StoreError, match=r"cannot write 'x'.*InternalError \(500\)"):
        store.put_file("x", tmp_path / "here")
    left = s3_server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert [upload for upload in left if upload["Key"].startswith(s3.rsplit("/", 1)[-1])] == []
    assert not store.exists("x")


def test_more_keys_than_a_page_are_listed_and_deleted_in_bulk(s3, request):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: open_store(s3).put(f"many/{number:05}", b"x"), range(1100)))
    faulty_s3, store = request.getfixturevalue("faulty_s3"), open_store(s3, patience=QUICK)
    assert [entry.path for entry in store.list()] == [f"many/{number:05}" for number in range(1100)]
    store.delete_tree("many")
    assert store.list() == []
    assert len(faulty_s3.requests) == 2 + 2 + 2 + 1


def _read(store, pipe):
    pipe.send_bytes(store.read("x"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_opens_its_own_connection(s3, method):
    store = open_store(s3)
    store.put("x", b"1")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context(method).Process(target=_read, args=(store, theirs))
    process.start()
    assert ours.poll(60)
    assert ours.recv_bytes() == store.read("x") == b"1"
    process.join(10)


def test_a_server_killed_and_started_again_only_delays_a_read(s3, s3_server, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(retry, "FIRST_WORD_S", 1.0)
    store, data = open_store(s3, patience=RetryConfig(deadline_s=60, longest_wait_s=1)), noise(8 * MIB)
    store.put("x", data)
    caplog.clear()  # of the put, where the machine is slow
    spans = [("x", at, at + 4096) for at in range(0, len(data), 4096)]
    with ThreadPoolExecutor(1) as pool:
        s3_server.kill()
        reading = pool.submit(store.read_ranges, spans)
        while not caplog.messages and not reading.done():
            time.sleep(0.01)
        s3_server.start()
        assert b"".join(reading.result(60)) == data
    first, *_, last = caplog.messages
    assert "cannot read 'x' in s3://emocap/" in first
    assert "trying again, for 60 s in all" in first
    assert "answers again, after" in last


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("AWS_SECRET_ACCESS_KEY", "canary-wrong", r"SignatureDoesNotMatch.*check the credentials: AWS_ACCESS_KEY_ID"),
        ("AWS_ACCESS_KEY_ID", "canary-nobody", r"InvalidAccessKeyId.*check the credentials: AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_one_clear_line_and_not_tried_again(s3, faulty_s3, monkeypatch, variable, value, line):
    monkeypatch.setenv(variable, value)
    store = open_store(s3)
    for ask in (lambda: store.read("x"), lambda: store.put("x", b"1"), store.list, lambda: store.read_range("x", 0, 9)):
        with pytest.raises(StoreError, match=line) as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert "canary" not in str(caught.value) + repr(store)
    assert len(faulty_s3.requests) <= 5  # a range is asked for in two ways


def test_no_credentials_at_all_are_one_clear_line(s3, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(StoreError, match=r"NoCredentials.*check the credentials"):
        open_store(s3).read("x")


def test_a_missing_bucket_is_named_and_is_not_an_empty_store(s3):
    store = open_store("s3://no-such-bucket-here/x")
    for ask in (lambda: store.read("x"), store.list, lambda: store.exists("x"), lambda: store.read_range("x", 0, 9)):
        with pytest.raises(StoreError, match=r"no-such-bucket-here.*make the bucket, or correct its name") as caught:
            ask()
        assert not isinstance(caught.value, NotFound)


def test_the_deadline_ends_the_patience_and_says_so(s3, faulty_s3):
    faulty_s3.inject("503")
    store = open_store(s3, patience=RetryConfig(deadline_s=0.5, first_wait_s=0.01, longest_wait_s=0.1))
    with pytest.raises(StoreError, match=r"SlowDown \(503\).*gave up after \d+ attempts in 0\.5 s"):
        store.read_range("x", 0, 1)


def test_secrets_of_the_environment_are_in_no_pickle(s3):
    store = open_store(s3)
    store.put("x", b"1")
    assert b"emocap-secret" not in pickle.dumps(store)
