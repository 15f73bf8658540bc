"""Defines the places from which a dataset is read: a folder, or a real S3 server on this machine."""

import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.rounds import Skipped
from launch.local_s3 import BUCKET, LocalS3

from .dataset import Datasets
from .host import BARE, WEB_DATASET, HostError, Pythons, System
from .hosts.task import Pass, Task

FILE, S3 = "file", "s3"
_SIGNED_FOR_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Place:
    """A dataset in the formats of all systems (the libraries that are compared), in a folder or on S3.

    Attributes:
        store: FILE or S3.
        root: The folder or URL that contains tars/, mds/ and lit/.
        folder: The folder on this machine with the same contents.
        tars: The addresses of the shards for webdataset: paths, or signed URLs that curl can read.
        work: The folder in which caches are made.
        environment: The environment variables that the reading processes need.
    """

    store: str
    root: str
    folder: str
    tars: tuple[str, ...]
    work: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def read(self, system: System, pythons: Pythons, **settings: Any) -> tuple[Pass, float] | Skipped:
        """Reads the dataset with one library (`system`) in a fresh process with an empty cache.

        `settings` are the fields of `Task` that this object does not determine.

        Returns:
            The measurements, and the seconds from the start of the process to the first batch. If the process failed, a
            `Skipped` is returned instead.
        """
        fields: dict[str, Any] = {
            "place": f"{self.folder if system == BARE else self.root}/{system.format}",
            **settings,
        }
        if system == WEB_DATASET:
            fields["urls"] = self.tars
        with tempfile.TemporaryDirectory(prefix="cache-", dir=self.work) as cache:
            if self.store != FILE and system not in {BARE, WEB_DATASET}:
                fields["cache"] = cache
            command = pythons.command(system.module, is_peer=system.is_peer)
            begin = time.monotonic()
            try:
                # The addresses of the shards would be too long for a command line.
                answer = pythons.call(command, self.environment, text=json.dumps(asdict(Task(**fields))))
            except HostError as error:
                return Skipped(str(error))
        found = Pass(**json.loads(answer))
        return found, found.first_at_s - begin


@contextmanager
def opened(store: str, work: Path) -> Generator[Callable[[Datasets], Place]]:
    """Yields a function that makes a dataset readable from `store` (a local folder or S3) and returns its `Place`.

    For S3, a server runs on this machine until the block ends.
    """
    if store == FILE:
        yield lambda datasets: local(datasets, work)
        return
    with LocalS3(work / "s3") as server:
        yield lambda datasets: uploaded(datasets, work, server)


def local(datasets: Datasets, work: Path) -> Place:
    """Returns the `Place` of a dataset that is read from its folder on this machine."""
    root = str(datasets.folder)
    return Place(FILE, root, root, tuple(map(str, datasets.tars)), work)


def uploaded(datasets: Datasets, work: Path, server: LocalS3) -> Place:
    """Uploads a dataset to the server, except for objects that an earlier run has uploaded. Returns its `Place`."""
    client, name = server.client(), datasets.folder.name
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{name}/")
    present = {entry["Key"] for page in pages for entry in page.get("Contents", ())}
    for path in sorted(datasets.folder.rglob("*")):
        key = f"{name}/{path.relative_to(datasets.folder)}"
        if path.is_file() and key not in present:
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    tars = (
        client.generate_presigned_url(
            "get_object", {"Bucket": BUCKET, "Key": f"{name}/tars/{path.name}"}, ExpiresIn=_SIGNED_FOR_S
        )
        for path in datasets.tars
    )
    environment = {**server.environment(), "S3_ENDPOINT_URL": server.endpoint}
    return Place(S3, f"s3://{BUCKET}/{name}", str(datasets.folder), tuple(tars), work, environment)
