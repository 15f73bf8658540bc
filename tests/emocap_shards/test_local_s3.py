"""Tests the S3 server as a person starts it: a taken port is reported, and signals end the server."""

import http.client
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local_s3
from launch.local_s3 import GRPC_STEP, HOST, LocalS3

# A shell starts background processes with SIGINT ignored.
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
    with pytest.raises(RuntimeError, match=rf"port {taken} .*, the gRPC port of port {taken - GRPC_STEP}, is taken"):
        LocalS3(tmp_path / "s3", port=taken - GRPC_STEP)
    assert not (tmp_path / "s3").exists()


@pytest.mark.parametrize("port", [-1, 55_536, 70_000])
def test_a_port_that_cannot_be_is_refused(tmp_path, port):
    with pytest.raises(RuntimeError, match=rf"^port {port} is not one of 1 to 55535"):
        LocalS3(tmp_path, port=port)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


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
    assert (Path(tmp_path) / "s3" / "data").is_dir()
    while is_open(int(port)):  # The kernel closes the sockets of killed processes one after the other.
        time.sleep(0.01)


def test_the_ports_beside_that_of_s3_want_a_certificate(s3_server):
    anonymous = ssl.create_default_context(cafile=s3_server.folder / local_s3.CERTIFICATE)
    anonymous.check_hostname = False
    known = ssl.create_default_context(cafile=s3_server.folder / local_s3.CERTIFICATE)
    known.load_cert_chain(s3_server.folder / local_s3.CERTIFICATE, s3_server.folder / local_s3.KEY)
    for service in ("filer", "master", "volume"):
        port = s3_server.ports[service]
        assert answered(http.client.HTTPConnection(HOST, port)) == 400  # TLS or nothing
        with pytest.raises((ssl.SSLError, OSError)):
            answered(http.client.HTTPSConnection(HOST, port, context=anonymous))
        assert answered(http.client.HTTPSConnection(HOST, port, context=known)) in {200, 400}


@pytest.mark.parametrize("service", local_s3.SERVICES)
def test_the_ports_of_grpc_want_a_certificate(s3_server, service):
    anonymous = ssl.create_default_context(cafile=s3_server.folder / local_s3.CERTIFICATE)
    anonymous.check_hostname = False
    anonymous.set_alpn_protocols(["h2"])
    with socket.create_connection((HOST, s3_server.ports[service] + GRPC_STEP), timeout=30) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert not answered_bytes(plain)
    line = socket.create_connection((HOST, s3_server.ports[service] + GRPC_STEP), timeout=30)
    with pytest.raises(ssl.SSLError), anonymous.wrap_socket(line, server_hostname=HOST) as secure:
        secure.read(1)  # in TLS 1.3 the server asks for the certificate after the client is done


def test_its_folder_and_its_sockets_are_for_its_user_alone(s3_server):
    assert stat.S_IMODE(s3_server.folder.stat().st_mode) == 0o700
    names = ("s3.json", "weed.log", "lock", local_s3.KEY, local_s3.SECURITY)
    sockets = [
        Path(local_s3.SOCKETS.format(name, number))
        for service, port in s3_server.ports.items()
        for name, number in ((service, port), (f"{service}-grpc", port + GRPC_STEP))
    ]
    there = [path for path in sockets if path.exists()]
    assert len(there) == 6
    for path in [*(s3_server.folder / name for name in names), *there]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3").chmod(0o777)
    with pytest.raises(RuntimeError, match=r"other users may write to the folder"):
        LocalS3(tmp_path / "s3").start()


def test_a_pipe_at_the_place_of_its_lock_is_refused(tmp_path):
    (tmp_path / "s3").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "s3" / "lock")
    with pytest.raises(RuntimeError, match=r"s3/lock: it is a named pipe"):
        LocalS3(tmp_path / "s3").start()


def answered(connection):
    """Returns the status of a plain GET."""
    try:
        connection.timeout = 30
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()


def answered_bytes(line):
    try:
        return line.recv(1)
    except ConnectionError:
        return b""
