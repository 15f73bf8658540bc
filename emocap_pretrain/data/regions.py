"""Reads and writes the file that says where the regions of faces lie, and which region each local sentence is about.

    <dataset>/regions.jsonl    a header line, then one line for each sample

The header is {"regions": 1, "dataset": DIGEST}, with the version of the format and the digest of the dataset's
manifest. A line has the key of a sample, the outlines of each region, and the region of each local sentence of the
sample's first caption, or null if it is not known:

    {"key": "0000-00001800", "areas": {"eyes": [[231, 410, 402, 398, ...], ...]}, "local": ["eyes", null, "mouth"]}

An outline is a polygon x, y, x, y, ... in the frame of the image's central square, which evaluations read
(`center_crop`): x and y are distances from its left and its top edge, in thousandths of its side. Points with values
below 0 or above 1000 lie outside of the square. A region is the union of its outlines. The file is separate from the
shards, so it can be added to a dataset that exists already.
"""

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias, cast

import numpy as np
import orjson
from emocap_shards.errors import NotFound
from emocap_shards.manifest import read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.store import open_store
from jaxtyping import Float
from PIL import Image, ImageDraw

from emocap_pretrain.errors import DataError

REGIONS_FILE, VERSION = "regions.jsonl", 1
UNIT = 1000
"""The side of the central square of an image, in the unit of the outlines."""

Outline: TypeAlias = tuple[int, ...]
"""The corners of a polygon: x, y, x, y, ..."""

# Somebody else may have written the file. The lines that this package writes have about 1 kB.
_MOST_BYTES, _MOST_LINE_BYTES = 1 << 30, 1 << 16
_MOST_REGIONS, _MOST_OUTLINES, _MOST_CORNERS, _FARTHEST = 64, 64, 512, 100 * UNIT
_LONGEST_HEADER = 1 << 12
_NAME = re.compile(r"[a-z0-9_]{1,40}")  # Names of scores contain those of regions.
_SHEET, _LEAST_FINE = 256, 16  # Least sub-cells along the side of the image, and along the side of a cell.


@dataclass(frozen=True, slots=True)
class FaceRegions:
    """Holds the regions of one face.

    Attributes:
        areas: The outlines of each region by its name, such as "eyes".
        local: For each local sentence of the first caption, the name of the region that the sentence is about; None if
            this is not known.
    """

    areas: Mapping[str, tuple[Outline, ...]]
    local: tuple[str | None, ...]


def outline(points: Float[np.ndarray, "corners 2"]) -> Outline:
    """Returns the outline of a polygon in thousandths of the side of the central square, as the file stores it.

    `points` are the corners of the polygon, in shares of this side.
    """
    return tuple(round(value * UNIT) for value in points.ravel().tolist())


def coverage(outlines: Iterable[Outline], side: int) -> Float[np.ndarray, " cells"]:
    """Returns which share of each cell of a grid the union of some outlines covers, from 0 to 1.

    The grid divides the central square into `side` x `side` cells. The result has the cells row by row, from the top.
    """
    each_px = max(_LEAST_FINE, -(-_SHEET // side))
    fine = side * each_px
    sheet = Image.new("1", (fine, fine))
    draw = ImageDraw.Draw(sheet)
    for each in outlines:
        # Pillow takes the corners as the middles of pixels.
        draw.polygon([value * fine / UNIT - 0.5 for value in each], fill=1)
    cells = np.asarray(sheet, dtype=np.float64).reshape(side, each_px, side, each_px)
    return cells.mean((1, 3)).ravel()


def write_regions(url: str, found: Iterable[tuple[str, FaceRegions]]) -> int:
    """Writes the file of regions into the folder of a dataset, and returns the number of samples in the file.

    An existing file of regions is replaced.

    Args:
        url: The dataset.
        found: The key and the regions of each sample.
    """
    store = open_store(url)
    lines = [_line({"regions": VERSION, "dataset": read_manifest(store).digest})]
    lines.extend(_line({"key": key, "areas": each.areas, "local": each.local}) for key, each in found)
    store.put(REGIONS_FILE, b"".join(lines))
    return len(lines) - 1


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def has_regions(url: str) -> bool:
    """Returns whether the dataset has a file of regions."""
    return open_store(url).exists(REGIONS_FILE)


def check_header(url: str) -> None:
    """Checks the first line of the file of regions, which names the version and the dataset.

    Raises:
        DataError: If it belongs to another dataset or version, or is no such line.
        NotFound: If there is no such file.
        StoreError: If the store cannot be read.
    """
    store, place = open_store(url), f"{masked_url(url)}/{REGIONS_FILE}"
    first = store.read_range(REGIONS_FILE, 0, _LONGEST_HEADER).partition(b"\n")[0]
    _check_header(first, read_manifest(store).digest, place)


def read_regions(url: str, keys: Container[str] | None = None) -> dict[str, FaceRegions]:
    """Returns the regions of the samples of a dataset, by their keys.

    Args:
        url: The dataset.
        keys: The keys of the samples whose regions are needed; None takes all. The regions of other samples are not
            kept in memory.

    Raises:
        DataError: If there is no such file, it belongs to another dataset or version, a line does not have the form
            that this module describes or is too large, or two lines have the same key.
        StoreError: If the store cannot be read.
    """
    store, place = open_store(url), f"{masked_url(url)}/{REGIONS_FILE}"
    try:
        lines = BytesIO(store.read(REGIONS_FILE, limit_bytes=_MOST_BYTES))
    except NotFound as error:
        raise DataError(f"{place} does not exist: write it with `emocap regions {masked_url(url)}`.") from error
    _check_header(lines.readline(), read_manifest(store).digest, place)
    found: dict[str, FaceRegions] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, 2):
        key, value = _keyed(line, f"{place}, line {number}")
        if key in seen:
            raise DataError(f"{place}, line {number}: an earlier line has the same key {key!r}.")
        seen.add(key)
        if keys is None or key in keys:
            found[key] = _face(value, f"{place}, line {number}")
    return found


def _check_header(line: bytes, dataset: str, place: str) -> None:
    about = _parsed(line, f"{place}, line 1")
    if about.get("regions") != VERSION:
        raise DataError(f"{place}: the version of the file is {about.get('regions')!r}, and {VERSION} can be read.")
    if about.get("dataset") != dataset:
        raise DataError(f"{place} belongs to another dataset: write it again with `emocap regions`.")


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    if len(line) > _MOST_LINE_BYTES:
        raise DataError(f"{place}: it has {len(line):,} bytes, and a line may have {_MOST_LINE_BYTES:,}.")
    try:
        value: Any = orjson.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: {type(value).__name__} instead of an object.")
    return cast("dict[str, Any]", value)


def _keyed(line: bytes, place: str) -> tuple[str, dict[str, Any]]:
    value = _parsed(line, place)
    key = value.get("key")
    if not isinstance(key, str):
        raise DataError(f"{place}: a line needs the text `key`.")
    return key, value


def _face(value: Mapping[str, Any], place: str) -> FaceRegions:
    areas, local = value.get("areas"), value.get("local")
    if not isinstance(areas, dict) or not isinstance(local, list):
        raise DataError(f"{place}: a line needs the object `areas` and the list `local`.")
    if len(cast("dict[str, Any]", areas)) > _MOST_REGIONS:
        raise DataError(f"{place}: a face may have {_MOST_REGIONS} regions.")
    known: dict[str, tuple[Outline, ...]] = {}
    for name, outlines in cast("dict[str, Any]", areas).items():
        if not _NAME.fullmatch(name):
            raise DataError(f"{place}: a region is called {name!r}; take lower-case letters, digits and _.")
        if not isinstance(outlines, list) or not all(map(_is_outline, cast("list[Any]", outlines))):
            raise DataError(f"{place}: the region {name!r} is not a list of polygons [x, y, x, y, ...].")
        if len(cast("list[Any]", outlines)) > _MOST_OUTLINES:
            raise DataError(f"{place}: the region {name!r} may have {_MOST_OUTLINES} outlines.")
        known[name] = tuple(tuple(each) for each in cast("list[list[int]]", outlines))
    about = cast("list[Any]", local)
    if odd := [each for each in about if each is not None and each not in known]:
        raise DataError(f"{place}: a sentence is about {odd[0]!r}, which is no region of the face.")
    return FaceRegions(known, tuple(about))


def _is_outline(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    numbers = cast("list[Any]", value)
    fits = 6 <= len(numbers) <= 2 * _MOST_CORNERS and len(numbers) % 2 == 0
    return fits and all(
        type(each) in {int, float} and math.isfinite(each) and abs(each) <= _FARTHEST for each in numbers
    )
