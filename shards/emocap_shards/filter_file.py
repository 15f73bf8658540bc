"""Reads and writes filter files, which say which samples and sentences of a packed dataset are not used, and why.

    {"filter": 1, "dataset": DIGEST, "origins": [{"name": "agreement", "made_by": "emocap check", "below": 0.5}]}
    {"key": "0000-00001800", "origin": 0, "reason": "The image shows no face."}
    {"key": "0000-00001801", "part": "local", "caption": 0, "sentence": 2, "captions": 1, "origin": 0, "reason": "..."}
    {"sha256": SHA256}

The first line names the dataset by the digest of its manifest, and the origins of the exclusions: the checks with their
thresholds, or the persons who marked captions. Each further line excludes a sample, a caption, or a part of a caption.
The last line has the digest of all lines before it, so no changed byte goes unnoticed. The lines are sorted, so equal
exclusions give equal bytes.

Somebody else may have written a filter file. It is read as data: it names no file and no address, and its size, its
numbers and its texts are bounded.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import groupby
from typing import Any, Literal, cast, get_args

import orjson

from emocap_shards.errors import FilterError, NotFound, TooLarge
from emocap_shards.mask import masked_url
from emocap_shards.printable import short
from emocap_shards.store import open_store

VERSION = 1
ExcludedPart = Literal["sample", "caption", "global", "summary", "local"]
PARTS: tuple[ExcludedPart, ...] = get_args(ExcludedPart)

MOST_FILE_BYTES, MOST_EXCLUSIONS = 1 << 31, 1 << 24
MOST_CAPTIONS = MOST_SENTENCES = 1 << 15
_MOST_LINE_BYTES, _MOST_HEADER_BYTES = 1 << 14, 1 << 20
_MOST_ORIGINS, _LONGEST_NAME, _LONGEST_TEXT = 4096, 80, 1000
_MOST_KEY, _MOST_SHARED = 1024, 1 << 16
_REASON = "reason"
_FIELDS = {"key", "part", "caption", "sentence", "captions", "origin", _REASON}


@dataclass(frozen=True, slots=True)
class FilterOrigin:
    """Says by what exclusions were made.

    Attributes:
        name: What was judged, in a few words, by which exclusions are counted, such as "agreement" or "not a face".
        made_by: The program or the person, such as "emocap check".
        below: The threshold: what has a score below it is excluded. None if there was no threshold.
        about: Further facts, such as the settings of a check; may be empty.
    """

    name: str
    made_by: str
    below: float | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Excludes a sample, or texts of one of its captions.

    Attributes:
        key: The key of the sample.
        origin: Index in `FilterFile.origins`.
        part: What is excluded: the sample, the whole caption, its global sentence, its summary, or local sentences.
        caption: Index of the caption among all captions of the sample; 0 for a sample.
        sentence: Index of the local sentence; None for all of them, and for other parts.
        captions: The number of captions that the sample has; 1 for a sample. It decides whether a caption is left when
            several filters exclude one caption each.
        reason: A sentence that says why; may be empty.
    """

    key: str
    origin: int
    part: ExcludedPart = "sample"
    caption: int = 0
    sentence: int | None = None
    captions: int = 1
    reason: str = ""


@dataclass(frozen=True)
class FilterFile:
    """Holds the content of a filter file. `of` constructs one from exclusions in any order.

    Attributes:
        dataset: The digest of the manifest of the dataset.
        origins: What made the exclusions, sorted.
        exclusions: The exclusions, sorted, each of them once.

    Example:
        ```python
        origin = FilterOrigin("agreement", "emocap check", below=0.5)
        found = [Exclusion("0000-00001801", 0, "local", sentence=2, reason="The mouth is closed.")]
        write_filter("check.jsonl", FilterFile.of(read_manifest(url).digest, [origin], found))
        ```
    """

    dataset: str
    origins: tuple[FilterOrigin, ...]
    exclusions: tuple[Exclusion, ...]

    @classmethod
    def of(cls, dataset: str, origins: Sequence[FilterOrigin], exclusions: Iterable[Exclusion]) -> "FilterFile":
        """Sorts the origins and the exclusions, and leaves out repetitions. Origins without an exclusion are kept.

        Raises:
            FilterError: If a value is outside of its bounds, or a sample has two different numbers of captions.
        """
        if any(origin.below is not None and not math.isfinite(origin.below) for origin in origins):
            raise FilterError("a threshold of the filter is not a finite number.")
        kept = sorted(set(origins), key=_origin_order)
        places = {origin: place for place, origin in enumerate(kept)}
        numbers = [places[origin] for origin in origins]
        found: list[Exclusion] = []
        for each in exclusions:
            if not 0 <= each.origin < len(numbers):
                raise FilterError("an exclusion of the filter has an origin that does not exist.")
            number = numbers[each.origin]
            found.append(each if number == each.origin else replace(each, origin=number))
        found.sort(key=_order)
        # The bytes are checked by the reader, so there is one place that knows the bounds.
        data = cls(dataset, tuple(kept), tuple(each for each, _ in groupby(found))).dump()
        del found
        return cls.load(data, where="the filter")

    @classmethod
    def merged(cls, files: Sequence["FilterFile"]) -> "FilterFile":
        """Returns the union of several filters of one dataset: what one of them excludes is excluded.

        Raises:
            FilterError: If there is no file, they belong to different datasets, or contradict each other about the
                number of captions of a sample.
        """
        datasets = {each.dataset for each in files}
        if len(datasets) != 1:
            digests = " and ".join(sorted(each[:16] for each in datasets))
            raise FilterError(
                f"filters of different datasets cannot be merged; they are made for {digests}."
                if files
                else "there is no filter file to merge: give at least one."
            )
        origins = [origin for each in files for origin in each.origins]
        firsts = _firsts(len(each.origins) for each in files)
        exclusions = (
            replace(exclusion, origin=first + exclusion.origin)
            for first, each in zip(firsts, files, strict=False)
            for exclusion in each.exclusions
        )
        return cls.of(datasets.pop(), origins, exclusions)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 that the last line of the file has. It identifies the filter."""
        return hashlib.sha256(self._body).hexdigest()

    def counts(self) -> tuple[Counter[ExcludedPart], ...]:
        """Returns for each origin how many samples, captions and parts of captions it excludes, by `Exclusion.part`."""
        found = tuple(Counter[ExcludedPart]() for _ in self.origins)
        for each in self.exclusions:
            found[each.origin][each.part] += 1
        return found

    @property
    def _body(self) -> bytearray:
        origins = [_of_origin(each) for each in self.origins]
        body = bytearray(_line({"filter": VERSION, "dataset": self.dataset, "origins": origins}))
        for each in self.exclusions:  # A list of all lines would need ten times the memory.
            body += _line(_of_exclusion(each))
        return body

    def dump(self) -> bytes:
        """Returns the bytes of the file.

        Raises:
            FilterError: If a text cannot be written as UTF-8.
        """
        body = self._body
        body += _last_line(hashlib.sha256(body).hexdigest())
        return bytes(body)

    @classmethod
    def load(cls, data: bytes, *, where: str) -> "FilterFile":
        """Returns the content of a file from its bytes; errors name it as `where`.

        Raises:
            FilterError: If a newer version has written the file, or if it is damaged: a byte was changed, a line is
                missing, or a value is outside of its bounds.
        """
        end = data.rfind(b"\n", 0, -1) + 1
        digest = hashlib.sha256(memoryview(data)[:end]).hexdigest()
        if data[end:] != _last_line(digest):
            raise _damaged(where, "its bytes are not those that its last line describes")
        lines = BytesIO(data)
        head = _parsed(lines.readline(_MOST_HEADER_BYTES), f"{where}, line 1")
        if head.get("filter") != VERSION:
            raise FilterError(
                f"{where}: the file has the version {short(head.get('filter'))}, and this code reads {VERSION}: update "
                "emocap_pretrain, or write the filter again."
            )
        origins = tuple(_origins(head, where))
        exclusions = tuple(_exclusions(lines, end, len(origins), where))
        found = cls(_digest_of(head, where), origins, exclusions)
        # It is known already, and computing it again would write the whole file again.
        found.__dict__["digest"] = digest
        return found


def read_filter(address: str) -> FilterFile:
    """Reads a filter file.

    Args:
        address: Path or URL of the file.

    Raises:
        FilterError: If there is no such file, it is too large, or `FilterFile.load` refuses it.
        StoreError: If the store does not answer.
    """
    folder, name = _split(address)
    try:
        data = open_store(folder).read(name, limit_bytes=MOST_FILE_BYTES)
    except NotFound as error:
        raise FilterError(f"{masked_url(address)}: there is no such filter file; correct the name.") from error
    except TooLarge as error:
        raise FilterError(
            f"{masked_url(address)} is larger than {MOST_FILE_BYTES:,} bytes, so not a filter."
        ) from error
    return FilterFile.load(data, where=masked_url(address))


def write_filter(address: str, file: FilterFile) -> None:
    """Writes a filter file, and replaces an existing file.

    Args:
        address: Path or URL of the file.
        file: The content.

    Raises:
        FilterError: If `address` does not name a file.
        StoreError: If the store cannot write the file.
    """
    folder, name = _split(address)
    open_store(folder).put(name, file.dump())


def _split(address: str) -> tuple[str, str]:
    folder, _, name = address.rpartition("/")
    if not name or folder.endswith(":/"):
        raise FilterError(
            f"{masked_url(address)} is not a file: give the path or URL of a filter, such as check.jsonl."
        )
    return folder or ("/" if address.startswith("/") else "."), name


def _line(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise FilterError(f"a text of the filter cannot be written as UTF-8 ({error}): {short(value)}.") from error


def _last_line(digest: str) -> bytes:
    return _line({"sha256": digest})


def _of_origin(origin: FilterOrigin) -> dict[str, Any]:
    value: dict[str, Any] = {"name": origin.name, "made_by": origin.made_by}
    value |= {} if origin.below is None else {"below": origin.below}
    return value | ({"about": origin.about} if origin.about else {})


def _of_exclusion(each: Exclusion) -> dict[str, Any]:
    value: dict[str, Any] = {"key": each.key}
    if each.part != "sample":
        value |= {"part": each.part, "caption": each.caption}
        value |= {} if each.sentence is None else {"sentence": each.sentence}
        value["captions"] = each.captions
    value["origin"] = each.origin
    return value | ({_REASON: each.reason} if each.reason else {})


def _origin_order(origin: FilterOrigin) -> tuple[str, str, float, str]:
    return origin.name, origin.made_by, -1.0 if origin.below is None else origin.below, origin.about


def _order(each: Exclusion) -> tuple[str, int, int, int, int, str, int]:
    sentence = -1 if each.sentence is None else each.sentence
    return each.key, each.caption, PARTS.index(each.part), sentence, each.origin, each.reason, each.captions


def _firsts(lengths: Iterable[int]) -> Iterator[int]:
    first = 0
    for length in lengths:
        yield first
        first += length


def _origins(head: dict[str, Any], where: str) -> Iterator[FilterOrigin]:
    values = head.get("origins")
    if not isinstance(values, list) or len(cast("list[Any]", values)) > _MOST_ORIGINS:
        raise _damaged(where, f"its origins are not a list of at most {_MOST_ORIGINS}")
    before: FilterOrigin | None = None
    for value in cast("list[Any]", values):
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        below, about = fields.get("below"), fields.get("about", "")
        texts = (fields.get("name"), _LONGEST_NAME), (fields.get("made_by"), _LONGEST_NAME)
        is_named = all(isinstance(text, str) and 0 < len(text) <= most for text, most in texts)
        is_number = below is None or (type(below) in {int, float} and math.isfinite(below))
        if not is_named or not is_number or not isinstance(about, str) or len(about) > _LONGEST_TEXT:
            raise _damaged(where, f"{short(value)} is not an origin with a name and what it was made by")
        origin = FilterOrigin(fields["name"], fields["made_by"], None if below is None else float(below), about)
        if before is not None and _origin_order(origin) <= _origin_order(before):
            raise _damaged(where, "its origins are not sorted")
        yield (before := origin)


def _digest_of(head: dict[str, Any], where: str) -> str:
    digest = head.get("dataset")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise _damaged(where, "its first line does not name a dataset by a digest")
    return digest


def _exclusions(lines: BytesIO, end: int, origins: int, where: str) -> Iterator[Exclusion]:
    """Yields the exclusions of the lines up to position `end`."""
    number, order, before = 1, None, None
    texts: dict[str, str] = {}  # Equal reasons are one object, as long as there are not too many different ones.
    while lines.tell() < end:
        number += 1
        place = f"{where}, line {number}"
        if number > MOST_EXCLUSIONS:
            raise _damaged(where, f"it has more than {MOST_EXCLUSIONS:,} exclusions")
        value = _parsed(lines.readline(_MOST_LINE_BYTES), place)
        if isinstance(reason := value.get(_REASON), str) and len(texts) < _MOST_SHARED:
            value[_REASON] = texts.setdefault(reason, reason)
        each = _exclusion(value, origins, place)
        now = _order(each)
        if order is not None and now <= order:
            raise _damaged(place, "the line does not come after the one before it in the order of the file")
        # The lines of a sample follow one another, and those that exclude it as a whole come first.
        is_same = before is not None and before.key == each.key and before.part != "sample"
        if before and is_same and before.captions != each.captions:
            raise FilterError(
                f"{place}: the sample {short(each.key)} has {each.captions} captions here and {before.captions} in "
                "another line: write the filter again."
            )
        order, before = now, each
        yield each


def _exclusion(value: dict[str, Any], origins: int, place: str) -> Exclusion:
    if value.keys() - _FIELDS:
        raise _damaged(place, f"it has the unknown field {short(min(value.keys() - _FIELDS))}")
    key, part, reason = value.get("key"), value.get("part", "sample"), value.get(_REASON, "")
    if not isinstance(key, str) or not 0 < len(key) <= _MOST_KEY or part not in PARTS:
        raise _damaged(place, f"it names no sample by a key, or its part is none of {', '.join(PARTS)}")
    if not isinstance(reason, str) or len(reason) > _LONGEST_TEXT:
        raise _damaged(place, f"its reason is not a text of at most {_LONGEST_TEXT} characters")
    caption, sentence, captions = value.get("caption", 0), value.get("sentence"), value.get("captions", 1)
    bounds = ((captions, MOST_CAPTIONS + 1), (caption, captions), (value.get("origin"), origins))
    if not all(type(number) is int and 0 <= number < most for number, most in bounds):
        raise _damaged(place, "its origin, or the number of a caption, is missing or too large")
    if sentence is not None and not (part == "local" and type(sentence) is int and 0 <= sentence < MOST_SENTENCES):
        raise _damaged(place, "its sentence is not the index of a local sentence")
    if part == "sample" and value.keys() & {"caption", "captions"}:
        raise _damaged(place, "it excludes a sample and names a caption")
    return Exclusion(key, value["origin"], part, caption, sentence, captions, reason)


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        value: Any = orjson.loads(line)
    except ValueError as error:
        raise _damaged(place, f"not JSON, or too long ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(place, f"{type(value).__name__} instead of an object")
    return cast("dict[str, Any]", value)


def _damaged(place: str, reason: str) -> FilterError:
    return FilterError(f"{place} is not a filter file that can be used: {reason}; write the filter again.")
