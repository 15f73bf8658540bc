"""Checks the services that a run uses: Ray, MLflow, and the clocks of servers."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from emocap_cluster.address import HERE, address_of_ray
from emocap_cluster.errors import NoCluster
from emocap_shards.mask import masked

from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail, ok, skipped, warn
from emocap_pretrain.doctor.storage import write_near
from emocap_pretrain.errors import TrackingError

RAY_PORT = 6379  # The port of `ray start --head`.
ANSWER_S = 10.0
SKEWED_S = 60.0
REFUSED_S = 900.0  # S3 refuses requests that are signed with a clock that is wrong by more.
_SET_CLOCK = "synchronize the clock of this host: `timedatectl set-ntp true`, or chrony"


def check_ray(inputs: DoctorInputs) -> Iterator[CheckResult]:  # noqa: ARG001 - the form of a check
    """Finds the Ray cluster that a job on this host would join, and checks that it answers."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        yield fail("Ray is not installed", "pip install -r requirements.lock")
        return
    try:
        address = address_of_ray()
    except NoCluster as error:
        yield fail(f"Ray {version}: {error}", "start the cluster (docs/clusters.md), or unset RAY_ADDRESS")
        return
    if address != HERE:
        yield ok(f"{version}, and the cluster at {masked(address)} answers")
    elif _answers(RAY_PORT):
        yield warn(
            f"{version}: port {RAY_PORT} is taken by another program, or by a cluster of another user",
            "a run on this host alone is not affected; `ray start --head` needs another --port",
        )
    else:
        yield ok(f"{version}; a run starts its own cluster on this host")


def check_clock(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Compares this host's clock with the `Date` that the servers of the stores and of MLflow send."""
    servers = dict.fromkeys(_servers(inputs))
    for scheme, host, port in servers:
        try:
            skew_s = _skew_s(scheme, host, port)
        except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
            yield skipped(f"{host} does not say its time ({type(error).__name__})")
            continue
        difference = f"{abs(skew_s):.0f} s {'fast' if skew_s > 0 else 'slow'}"
        text = f"{difference} compared with {host}" if abs(skew_s) >= 2 else f"equals that of {host}"
        if abs(skew_s) >= REFUSED_S:
            yield fail(f"{text}; S3 refuses more than 15 minutes", _SET_CLOCK)
        elif abs(skew_s) >= SKEWED_S:
            yield warn(text, _SET_CLOCK)
        else:
            yield ok(text)
    if not servers:
        yield skipped("this config names no server" if inputs.url else "give a config")


def check_mlflow(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Creates a run in MLflow, writes a metric and a text into it, and deletes it."""
    settings = inputs.tracking
    if settings is None:
        yield skipped("give a config")
        return
    file = Path(settings.uri.removeprefix("sqlite:///"))
    if settings.uri.startswith("sqlite:///") and not file.exists():
        yield _new_database(file)
        return
    from emocap_pretrain.tracking.mlflow_run import probe

    try:
        probe(settings)
    except TrackingError as error:
        cure = "start the server, correct tracking.uri, or give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield fail(str(error), cure)
    else:
        yield ok("a run was created, written and deleted")


def _new_database(file: Path) -> CheckResult:
    try:
        write_near(file.parent)
    except OSError as error:
        return fail(f"{file} cannot be made: {error.strerror}", "set tracking.uri to another place")
    return ok("the first run will make the database")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _servers(inputs: DoctorInputs) -> Iterator[tuple[str, str, int | None]]:
    """Yields the scheme, the host and the port of each server that this config names. The port None is the usual one.

    Users and passwords in the URLs are left out. A URL whose port is not a number is left out too; the check of its
    service reports it.
    """
    urls = [*inputs.datasets.values(), inputs.url or "", inputs.tracking.uri if inputs.tracking else ""]
    for url in urls:
        address = _s3_endpoint() if url.startswith(("s3://", "s3a://")) else url
        if address.startswith(("http://", "https://")):
            with suppress(ValueError):
                parts = urlsplit(address)
                if parts.hostname:
                    yield parts.scheme, parts.hostname, parts.port


def _s3_endpoint() -> str:
    """Returns the URL of the S3 server that botocore finds in the environment or in its files."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.get_session()
        region = session.get_config_variable("region") or "us-east-1"
        return str(session.create_client("s3", region_name=region).meta.endpoint_url)
    except (BotoCoreError, ValueError):
        return ""


def _skew_s(scheme: str, host: str, port: int | None) -> float:
    """Returns the seconds by which this host's clock is ahead of the server's clock.

    The request names no object and has no credentials: a refusal has a date too. The date has a resolution of 1 s.

    Raises:
        OSError: If the server does not answer.
        HTTPException: If the answer is not HTTP.
        ValueError: If the answer has no valid date.
        TypeError: If the answer has no date at all (`parsedate_to_datetime` raises it).
    """
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    with closing(kind(host, port, timeout=ANSWER_S)) as connection:
        began = time.time()
        connection.request("HEAD", "/")
        date = connection.getresponse().headers["Date"]
        middle = (began + time.time()) / 2
    # A server's date is cut to whole seconds, so on average it is half a second too early.
    return middle - (parsedate_to_datetime(date).timestamp() + 0.5)
