"""Tests that a broken or hostile server, file or index costs only bounded time and memory."""

import gzip
import os
import re
import time
import tracemalloc
import uuid
from contextlib import suppress

import pytest
from emocap_shards import manifest
from emocap_shards.errors import StoreError
from emocap_shards.store import RetryConfig, TransferConfig, objects, open_store
from emocap_shards.store.folder import FolderStore
from test_store_web import DATA, answers

__all__ = ["answers"]  # a fixture
MIB = 1 << 20
ONCE = RetryConfig(deadline_s=0, read_timeout_s=2)
FAR = 1 << 49


@pytest.fixture(params=["folder", "memory", "s3", "web"])
def filled(request, tmp_path):
    """Returns a store whose object "x" holds DATA."""
    if request.param == "web":
        return open_store(request.getfixturevalue("answers").url)
    urls = {"folder": tmp_path / "root", "memory": f"memory://{uuid.uuid4().hex}/root"}
    store = open_store(urls.get(request.param) or request.getfixturevalue("s3"))
    store.put("x", DATA)
    return store


def peak_bytes(act):
    """Returns the largest amount of memory that Python held in all threads while `act` ran, and the error that was
    raised.
    """
    tracemalloc.start()
    try:
        with pytest.raises(StoreError) as caught:
            act()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def s3_at(answers, monkeypatch):
    """Makes the web server of `answers` the S3 endpoint, and returns the URL of a folder there."""
    for name, value in {"ENDPOINT_URL": answers.url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return f"s3://bucket/{uuid.uuid4().hex}"


def start(request, status, headers):
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.close_connection = True


def pour(request, status, headers, *, total=48 * MIB):
    """Sends a long body until the client stops reading."""
    start(request, status, {"Content-Length": str(total), **headers})
    try:
        for _ in range(total // MIB):
            request.wfile.write(bytes(MIB))
            request.server.poured += MIB
    except OSError:
        pass  # The client disconnected, as the test expects.
    return True


def test_a_larger_object_than_the_limit_is_named_and_one_at_the_limit_is_read(filled):
    assert filled.read("x", limit_bytes=len(DATA)) == DATA
    with pytest.raises(StoreError, match=rf"cannot read 'x' in .*: {len(DATA)} bytes, where {len(DATA) - 1} is the"):
        filled.read("x", limit_bytes=len(DATA) - 1)


@pytest.mark.parametrize("headers", [{"Accept-Ranges": "bytes"}, {}, {"Transfer-Encoding": "chunked"}])
def test_a_limit_holds_whatever_the_server_says_of_the_size(answers, headers):
    def endless(request):
        if "Transfer-Encoding" not in headers:
            return pour(request, 200, headers)
        start(request, 200, headers)
        try:
            for _ in range(48):
                request.wfile.write(b"100000\r\n" + bytes(MIB) + b"\r\n")
        except OSError:
            pass  # as above
        return True

    answers.odd, answers.poured = endless, 0
    peak, message = peak_bytes(lambda: open_store(answers.url, patience=ONCE).read("x", limit_bytes=1000))
    assert re.search(r"cannot read 'x' .* where 1000 is the limit", message)
    assert peak < 12 * MIB


@pytest.fixture(params=["web", "s3"])
def sizeless(request, answers, monkeypatch):
    """Returns a store on a server that sends DATA in chunks, without its size, also to a request of a range. A part of
    the store is much smaller than DATA.
    """

    def chunked(request):
        start(request, 200, {"Transfer-Encoding": "chunked", "Accept-Ranges": "bytes"})
        if request.command == "GET":
            with suppress(OSError):  # The client disconnects when it has the range.
                request.wfile.write(f"{len(DATA):x}\r\n".encode() + DATA + b"\r\n0\r\n\r\n")
        return True

    answers.odd = chunked
    url = answers.url if request.param == "web" else s3_at(answers, monkeypatch)
    return open_store(url, patience=ONCE, traffic=TransferConfig(part_bytes=100_000, in_flight=2))


def test_an_object_whose_size_the_server_does_not_tell_is_read_to_its_end(sizeless):
    assert sizeless.read("x") == DATA
    with pytest.raises(StoreError, match="where 700000 is the limit"):
        sizeless.read("x", limit_bytes=700_000)


def test_a_part_of_an_object_whose_size_the_server_does_not_tell_is_never_the_whole(sizeless, tmp_path):
    for act in (lambda: sizeless.read_range("x", 0, len(DATA)), lambda: sizeless.get_file("x", tmp_path / "x")):
        with pytest.raises(StoreError, match="the server does not tell the size of the object"):
            act()


@pytest.mark.parametrize("act", ["read", "read_versioned", "read_manifest"])
def test_an_endless_body_costs_bounded_memory_where_nobody_gave_a_limit(answers, act):
    def endless(request):
        start(request, 200, {"Transfer-Encoding": "chunked"})
        try:
            while True:
                request.wfile.write(b"100000\r\n" + bytes(MIB) + b"\r\n")
        except OSError:
            pass  # as above
        return True

    answers.odd = endless
    store = open_store(answers.url, patience=ONCE)
    acts = {"read_manifest": lambda: manifest.read_manifest(store)}
    peak, message = peak_bytes(acts.get(act) or (lambda: getattr(store, act)("x")))
    assert "is the limit; check that it is the right file" in message
    assert peak < 256 * MIB


def test_a_size_that_no_disk_has_room_for_is_refused_before_memory_is_asked_for(answers, tmp_path):
    size = 1 << 60
    span = {"Content-Range": f"bytes 0-{8 * MIB - 1}/{size}", "Content-Length": str(8 * MIB), "ETag": '"1"'}

    def huge(request):
        start(request, 206, span)
        request.wfile.write(bytes(8 * MIB))
        return True

    answers.odd = huge
    store = open_store(answers.url, patience=ONCE)
    peak, message = peak_bytes(lambda: store.get_file("x", tmp_path / "x"))
    assert "no space is left there: free some, or choose another disk" in message
    assert peak < 64 * MIB
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("total", ["9" * 30, "9" * 5000, "-1", "1e9", ""])
def test_a_size_that_is_not_a_number_is_an_error_of_one_line_or_no_size(answers, total):
    span = f"bytes 0-4/{total}"
    answers.odd = lambda request: request.send(206, DATA[:5], {"Content-Range": span}) or True
    assert open_store(answers.url, patience=ONCE).read_range("x", 0, 5) == DATA[:5]


@pytest.mark.parametrize("size", ["9" * 5000, "-", "x"])
def test_a_listing_with_a_size_that_is_not_a_number_is_an_error_of_one_line(answers, monkeypatch, size):
    url = s3_at(answers, monkeypatch)
    item = f"<Contents><Key>a</Key><Size>{size}</Size></Contents>"
    body = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{item}</ListBucketResult>'
    answers.odd = lambda request: request.send(200, body.encode()) or True
    with pytest.raises(StoreError, match="the server's listing cannot be read") as caught:
        open_store(url, patience=ONCE).list()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("repeats", [True, False])
def test_a_listing_without_end_is_refused(answers, monkeypatch, repeats):
    url = s3_at(answers, monkeypatch)
    monkeypatch.setattr(objects, "MOST_PAGES", 20)

    def page(request):
        token = "same" if repeats else f"token-{len(request.seen)}"
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        body = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{more}</ListBucketResult>'
        request.send(200, body.encode())
        return True

    answers.odd = page
    with pytest.raises(StoreError, match="repeats page" if repeats else "has more than 20 pages"):
        open_store(url, patience=ONCE).list()


def test_only_a_folder_is_near(filled):
    assert filled.is_near == isinstance(filled, FolderStore)


def test_a_body_that_drips_is_given_up(answers):
    def drip(request):
        start(request, 200, {"Content-Length": "1000"})
        try:
            for _ in range(40):
                request.wfile.write(b"x")
                time.sleep(0.2)
        except OSError:
            pass  # as above
        return True

    answers.odd = drip
    patience = RetryConfig(deadline_s=0, connect_timeout_s=0.5, read_timeout_s=1)
    store = open_store(answers.url, patience=patience, traffic=TransferConfig(part_bytes=1))
    for limit_bytes in (64 * MIB, 2000):
        with pytest.raises(StoreError, match="TimeoutError"):
            store.read("x", limit_bytes=limit_bytes)


def test_a_compressed_body_is_refused_and_not_inflated(answers):
    bomb = gzip.compress(bytes(64 * MIB))
    answers.odd = lambda request: request.send(206, bomb, {"Content-Encoding": "gzip"}) or True
    store = open_store(answers.url, patience=ONCE)
    for act in (lambda: store.read_range("x", 0, 1000), lambda: store.read("x"), lambda: store.exists("x")):
        peak, message = peak_bytes(act)
        assert "compresses it (gzip); configure it to send these files unchanged" in message
        assert peak < 8 * MIB


@pytest.mark.parametrize("status", [206, 403, 500])
def test_no_more_is_read_of_a_long_body_than_was_asked_for(answers, status):
    answers.poured = 0
    answers.odd = lambda request: pour(request, status, {"Content-Range": f"bytes 0-999/{len(DATA)}"})
    peak, _ = peak_bytes(lambda: open_store(answers.url, patience=ONCE).read_range("x", 0, 1000))
    assert peak < 12 * MIB
    assert answers.poured < 48 * MIB


@pytest.mark.parametrize("status", [201, 204, 300, 301, 304])
def test_an_answer_without_the_object_is_never_data(answers, status):
    def bare(request):
        start(request, status, {"Content-Length": "0"})
        return True

    answers.odd = bare
    store = open_store(answers.url, patience=ONCE)
    for act in (lambda: store.read_range("x", 0, 5), lambda: store.read("x"), lambda: store.exists("x")):
        with pytest.raises(StoreError, match=rf"\({status}\)"):
            act()


def through_botocore(answers, monkeypatch, status, headers):
    """Returns a store on a fake S3 server, which makes the store use botocore and then sends an endless body."""
    answers.poured = 0

    def odd(request):
        if len(answers.seen) == 1:
            return request.send(403, b"no") or True
        return pour(request, status, headers)

    answers.odd = odd
    return open_store(s3_at(answers, monkeypatch), patience=ONCE)


def test_an_s3_server_that_ignores_ranges_is_cut_short(answers, monkeypatch):
    store = through_botocore(answers, monkeypatch, 200, {})
    tracemalloc.start()
    try:
        assert store.read_range("x", 5, 1000) == bytes(995)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(answers.seen) == 2
    assert peak < 24 * MIB  # botocore's own tables are most of it
    assert answers.poured < 48 * MIB


@pytest.mark.parametrize("status", [206, 500])
def test_no_more_is_read_of_a_long_body_from_s3_than_was_asked_for(answers, monkeypatch, status):
    store = through_botocore(answers, monkeypatch, status, {"Content-Range": f"bytes 0-999/{len(DATA)}"})
    peak, _ = peak_bytes(lambda: store.read_range("x", 0, 1000))
    assert len(answers.seen) == 2
    assert peak < 24 * MIB
    assert answers.poured < 48 * MIB


def test_a_span_far_after_the_end_costs_no_more_than_the_object(filled):
    tracemalloc.start()
    try:
        assert filled.read_ranges([("x", 5, FAR), ("x", FAR, 2 * FAR)]) == [DATA[5:], b""]
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_span_that_the_kernel_gives_in_pieces_is_whole(tmp_path, monkeypatch):
    store, pread = open_store(tmp_path), os.pread
    store.put("x", DATA)
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: pread(descriptor, min(size, 100_000), at))
    assert store.read_range("x", 5, 900_000) == DATA[5:900_000]
