"""The places from which a dataset is read: a folder, or a real S3 server on this machine."""

import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.local_s3 import BUCKET, LocalS3

from .dataset import Datasets
from .host import BARE, WEB_DATASET, System

FILE, S3 = "file", "s3"
_SIGNED_FOR_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Place:
    """Describes all formats of a dataset at one store.

    Args:
        store: "file" or "s3".
        root: Folder or URL that holds tars/, mds/ and lit/.
        folder: Folder with the same on this machine.
        tars: What webdataset is given: paths, or URLs that are signed, so that curl can read them.
        environment: What the readers need.
        work: Where caches are made.
    """

    store: str
    root: str
    folder: str
    tars: tuple[str, ...]
    work: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @contextmanager
    def task(self, system: System, **settings: Any) -> Generator[dict[str, Any]]:
        """Yields fields of a `Task`, with an empty cache that is deleted afterwards."""
        root = self.folder if system == BARE else self.root
        fields = {"place": f"{root}/{system.format}", **settings}
        if system == WEB_DATASET:
            fields["urls"] = self.tars
        if self.store == FILE or system in {BARE, WEB_DATASET}:
            yield fields
            return
        cache = tempfile.mkdtemp(prefix="cache-", dir=self.work)
        try:
            yield {**fields, "cache": cache}
        finally:
            shutil.rmtree(cache)


def local(datasets: Datasets, work: Path) -> Place:
    root = str(datasets.folder)
    return Place(FILE, root, root, tuple(map(str, datasets.tars)), work)


@contextmanager
def served(work: Path) -> Generator[LocalS3]:
    with LocalS3(work / "s3") as server:
        yield server


def uploaded(datasets: Datasets, work: Path, server: LocalS3) -> Place:
    """Uploads the dataset to the server, unless an earlier run has done so."""
    client, name = server.client(), datasets.folder.name
    there = _keys(client, name)
    for path in sorted(datasets.folder.rglob("*")):
        key = f"{name}/{path.relative_to(datasets.folder)}"
        if path.is_file() and key not in there:
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    tars = (
        client.generate_presigned_url(
            "get_object", {"Bucket": BUCKET, "Key": f"{name}/tars/{path.name}"}, ExpiresIn=_SIGNED_FOR_S
        )
        for path in datasets.tars
    )
    environment = {**server.environment(), "S3_ENDPOINT_URL": server.endpoint}
    return Place(S3, f"s3://{BUCKET}/{name}", str(datasets.folder), tuple(tars), work, environment)


def _keys(client: Any, prefix: str) -> set[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return {entry["Key"] for page in pages for entry in page.get("Contents", ())}
