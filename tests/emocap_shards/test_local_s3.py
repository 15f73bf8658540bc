"""The S3 server as a person starts it: a taken port is said, and signals end it."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local_s3
from launch.local_s3 import GRPC_STEP, HOST, LocalS3

# A shell ignores SIGINT for what it starts in the background.
BACKGROUND = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_refused_before_anything_starts(tmp_path, taken, monkeypatch):
    monkeypatch.setattr(local_s3, "_LAST_PORT", 65_535)
    with pytest.raises(RuntimeError, match=rf"^port {taken} of 127.0.0.1 is taken; choose another --port"):
        LocalS3(tmp_path / "s3", port=taken)
    with pytest.raises(RuntimeError, match=rf"port {taken} .*, which port {taken - GRPC_STEP} needs too, is taken"):
        LocalS3(tmp_path / "s3", port=taken - GRPC_STEP)
    assert not (tmp_path / "s3").exists()


@pytest.mark.parametrize("port", [-1, 55_536, 70_000])
def test_a_port_that_cannot_be_is_refused(tmp_path, port):
    with pytest.raises(RuntimeError, match=rf"^port {port} is none of 1 to 55535"):
        LocalS3(tmp_path, port=port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_says_nothing(tmp_path, number):
    command = [sys.executable, local_s3.__file__, str(tmp_path / "s3"), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", BACKGROUND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            lines = [server.stdout.readline() for _ in range(6)]
            server.send_signal(number)
            _, said = server.communicate(timeout=30)
        finally:
            server.kill()
    (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
    assert (server.returncode, said) == (0, "")
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect((HOST, int(port)))
    assert (Path(tmp_path) / "s3" / "data").is_dir()
