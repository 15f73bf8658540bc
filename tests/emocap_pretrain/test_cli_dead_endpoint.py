"""Tests that short commands give up after a minute if a store does not answer, unless the user sets a deadline."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec.config
import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import RetryConfig, Store, open_store, retry
from emocap_shards.store.objects import ObjectStore
from typer.testing import CliRunner

from emocap_pretrain.cli.app import app
from emocap_pretrain.cli.reach import SOON_S, open_soon

COMMANDS = [
    ("inspect", "{}"),
    ("verify", "{}"),
    ("status", "{}"),
    ("stop", "{}"),
    ("profile", "{}"),
    ("checkpoints", "list", "{}"),
    ("checkpoints", "verify", "{}"),
    ("checkpoints", "prune", "{}", "--keep-last", "1"),
    ("evaluate", "{}", "--data", "nowhere"),
]


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")


@pytest.fixture
def dead() -> Iterator[int]:
    """Yields a port on which no process listens. It is bound, so that no other process can use it."""
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """Yields the port of a server that accepts connections and never answers."""
    held = list[socket.socket]()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def take() -> None:
            with suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for each in held:
        each.close()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_dead_endpoint_is_one_line(command: tuple[str, ...], dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "0.3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead}")
    done = CliRunner().invoke(app, [part.format("s3://bucket/faces") for part in command])
    assert done.exit_code in {1, 2}, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "gave up after" in line
    assert "s3://bucket/faces" in line


def test_a_minute_is_the_limit_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOCAP_STORE_DEADLINE_S", raising=False)
    assert (deadline_s(open_soon("s3://bucket/x")), deadline_s(open_store("s3://bucket/x"))) == (SOON_S, 900)
    assert SOON_S == 60
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "7")
    assert deadline_s(open_soon("s3://bucket/x")) == 7


def deadline_s(store: Store) -> float:
    assert isinstance(store, ObjectStore)
    return store.patience.deadline_s


def test_a_server_that_never_answers_is_named_while_the_command_waits(
    silent: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "FIRST_WORD_S", 0.2)
    store = open_store(f"http://127.0.0.1:{silent}/faces", patience=RetryConfig(deadline_s=1, read_timeout_s=1.5))
    with pytest.raises(StoreError, match="gave up after 1 attempts in 1 s"):
        store.read("manifest.json")
    first = caplog.messages[0]
    place = f"http://127.0.0.1:{silent}/faces"
    assert first.startswith(f"cannot read 'manifest.json' in {place} for 0 s now: no answer yet")
    assert first.endswith("trying again, for 1 s in all.")


def test_missing_credentials_name_the_setting_for_a_public_bucket(monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead}")
    done = CliRunner().invoke(app, ["inspect", "s3://bucket/faces-of-nobody"])
    assert done.exit_code == 2
    assert "for a public bucket set FSSPEC_S3_ANON=true" in done.stderr


class PublicBucket(BaseHTTPRequestHandler):
    """Answers as a public bucket of S3: it refuses every signature, and gives the object `x` without one."""

    refused = b"<Error><Code>%s</Code><Message>Denied</Message></Error>"
    code = b"AccessDenied"

    def do_GET(self) -> None:
        signed = "Authorization" in self.headers or "Signature" in self.path
        body = self.refused % self.code if signed else b"public"
        self.send_response(403 if signed else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("code", [b"AccessDenied", b"InvalidAccessKeyId"])
def test_a_refusal_of_s3_names_the_setting_for_a_public_bucket_which_works(
    code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (PublicBucket,), {"code": code})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreError, match=rf"{code.decode()} \(403\).*for a public bucket set FSSPEC_S3_ANON=true"):
            open_store(f"s3://bucket/refusing-{code.decode()}").read("x")
        # fsspec reads the variable FSSPEC_S3_ANON into this dictionary when it is imported.
        monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})
        assert open_store(f"s3://bucket/anonymous-{code.decode()}").read("x") == b"public"
        server.shutdown()
