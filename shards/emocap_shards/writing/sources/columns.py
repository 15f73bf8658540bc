"""Says which columns of a table hold the image, the caption and the labels, and makes a row from their values."""

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any, Literal, cast, get_args

from emocap_shards.annotation import MAX_WHOLE
from emocap_shards.decode import FORMATS
from emocap_shards.errors import AnnotationError, RecordError
from emocap_shards.printable import listed, short
from emocap_shards.writing.row import BadRow, ImageFolders, LocalFile, SourceRow, key_of

CaptionRule = Literal["auto", "required", "optional", "none"]
"""Says whether a row needs a caption. With "auto", rows with labels need none if no column looks like a caption."""
CAPTION_RULES: tuple[CaptionRule, ...] = get_args(CaptionRule)


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Names the columns of a table of images with captions.

    A caption has three parts: a global text, local sentences and a summary. The attributes `global_`, `local` and
    `summary` each name the column of one part. A row that lacks the column of the global part can have a column
    "caption" instead. This column holds the complete caption as a JSON object, as in a shard.

    Attributes:
        image: Column with the image: a path, or the encoded bytes, or an object with both ("bytes", "path").
            `ImageFolders` says to which folder a path is relative.
        global_: Column with the global part. A list holds the global parts of several captions of one image; only the
            first of these captions has the row's `local` and `summary`.
        local: Column with the local sentences: a list, or a text in which "|" separates the sentences.
        summary: Column with the summary.
        further: Each of these columns lists other captions of the image: texts, or objects with "global", "local" and
            "summary".
        key: Column with the key of the sample. A row without a key gets one from the image's path, or else from the
            index of the row.
        labels: Names of labels. Each is a column, or a member of the object in the column "labels". If this is empty,
            all members of that object are labels.
        captions: Whether a row needs a caption. "required": every row needs one. "optional": a row with a label may
            lack one. "none": captions are not read. "auto": as "required", except for rows that have labels, neither a
            column of the global part nor one whose name looks like that of captions, while `global_` has its standard
            name.
        label_names: The names of the values of the one label in `labels`, such as {"1": "surprise"}. If it is not
            empty, every value must have a name.
        image_name: The name of the file of an image whose table has another name for it, such as
            "{stem}_aligned.jpg"; "{stem}" is the name in the table without its suffix, and "{name}" the whole name. The
            folder in the table stays.
        cure: What messages about a missing column or image tell the user to do; empty names options of `emocap pack`.
        instead: The columns that hold the global part of rows without the column `global_`, if the source says them.
    """

    image: str = "image"
    global_: str = "global"
    local: str = "local"
    summary: str = "summary"
    further: tuple[str, ...] = ("further",)
    key: str = "key"
    labels: tuple[str, ...] = ()
    captions: CaptionRule = "auto"
    label_names: Mapping[str, str] = field(default_factory=dict[str, str])
    image_name: str = ""
    instead: tuple[str, ...] = ()
    cure: str = ""

    def __post_init__(self) -> None:
        if self.captions not in CAPTION_RULES:
            raise RecordError(f"captions={short(self.captions)} is not one of {', '.join(CAPTION_RULES)}.")
        if self.image_name and (
            not _PLACE.search(self.image_name) or set(_PLACE.sub("", self.image_name)) & set("{}/")
        ):
            raise RecordError(
                f"image_name={short(self.image_name)}: a name has {{stem}} or {{name}}, and no slash, such as "
                "{stem}_aligned.jpg."
            )
        if self.label_names and len(self.labels) != 1:
            raise RecordError(f"names of values belong to one label, but there are {len(self.labels)} (--label).")

    def check(self, present: Sequence[str], *, where: str) -> None:
        """Checks that a table with the columns `present` can be read. `where` names the table in the error.

        Raises:
            RecordError: If the image, the global part, a label or a named column of further captions is missing.
        """
        if missing := self.missing(present):
            raise RecordError(f"{where}: {self.lacking(missing, present)}.")

    def missing(self, present: Sequence[str]) -> list[str]:
        """Returns the columns that are needed and not `present`."""
        # If the rows have an object `labels`, a named label may be one of its members, which only a row shows.
        labels = () if "labels" in present else self.labels
        further = () if self.captions == "none" else self.named_further
        needs_global = not {"caption", *self.instead} & set(present) and not self.may_lack_captions(present)
        wanted = [self.image, *labels, *further] + ([self.global_] if needs_global else [])
        return [name for name in wanted if name not in present]

    def may_lack_captions(self, present: Collection[str]) -> bool:
        """Returns whether a row with the columns `present` may have labels alone."""
        if self.captions != "auto":
            return self.captions != "required"
        has_labels = bool(self.labels) or "labels" in present
        is_named = self.global_ != STANDARD.global_ or bool(self.named_further)
        others = set(present) - {self.image, self.key, *self.labels}
        return has_labels and not is_named and self.global_ not in present and not any(map(_CAPTION.search, others))

    def lacking(self, missing: Sequence[str], present: Sequence[str]) -> str:
        """Returns the error message about missing columns. The message also lists the columns that are present."""
        lines = f"there is no column {', '.join(map(repr, missing))}, but {listed(present, _SHOWN) or 'none'}"
        if self.cure:
            return f"{lines}; {self.cure}"
        options = "--image, --global, --label" + (", --further" if set(missing) & set(self.named_further) else "")
        # A table that has labels and no captions gets a hint of its own.
        alone = self.global_ in missing and (bool(self.labels) or "labels" in present)
        cure = "; if the images have labels and no captions, give --captions none" if alone else ""
        if not alone and missing == [self.global_]:
            cure = "; if the images have labels and no captions, name the labels with --label"
        return f"{lines}; say which is which with {options}{cure}"

    @property
    def named_further(self) -> tuple[str, ...]:
        """Returns the columns of further captions that the user has named. Every row must have them."""
        return () if self.further == STANDARD.further else self.further

    @property
    def given(self) -> frozenset[str]:
        """Returns the options of `emocap pack` with which the user has set attributes, such as "--label"."""
        names = [each.name for each in fields(self) if getattr(self, each.name) != getattr(STANDARD, each.name)]
        return frozenset("--label" if name == "labels" else f"--{name.strip('_').replace('_', '-')}" for name in names)

    @property
    def used(self) -> frozenset[str]:
        """Returns all columns that a row may need."""
        parts = {self.image, self.global_, self.local, self.summary, self.key}
        return frozenset({*parts, *self.further, *self.labels, *self.instead, "caption", "labels"})


STANDARD = TableColumns()


def with_texts(columns: TableColumns) -> TableColumns:
    """Returns the columns for samples whose caption may also be a text of its own, or a field of JSON."""
    return replace(columns, instead=("txt", "caption"))


_EMPTY = (None, "")
_PLACE = re.compile(r"\{(stem|name)\}")
_SUFFIXES = FORMATS.keys() | {"bmp", "gif", "tif", "tiff", "avif", "heic", "heif", "jfif"}
# Names of columns that probably hold captions. A table with such a column is not taken as one of labels alone.
_CAPTION = re.compile("^(local|further)$|caption|text|txt|title|descri|sentence|summary|prompt", re.IGNORECASE)
_SHOWN = 12
_LONGEST_PATH = 300  # A longer text in the image column is not a path.
URL = re.compile("(https?|s3|gs)://", re.IGNORECASE)
NO_URLS = "URLs are not fetched here: download them with img2dataset (--output_format webdataset) and pack its tars"
_ELSEWHERE = re.compile(r"[a-z]:[\\/]|file:|~/", re.IGNORECASE)  # A drive of Windows, a URL of a file, a home folder.
_PIXELS = re.compile(r"[\d.,\s]{64}")  # A cell that lists the values of pixels begins like this, as in FER2013.


def row_of(
    values: Mapping[str, Any], columns: TableColumns, *, where: str, number: int, images: ImageFolders
) -> SourceRow | BadRow:
    """Returns the row for `values`, which maps the columns of a table to their values in one row.

    `where` names the row in messages. `number` is the index of the row, and becomes its key if neither the key column
    nor the image's path gives a key. `images` are the folders to which the path of an image may be relative.
    """
    try:
        value = _on_disk(values[columns.image], columns.image_name)
        image = image_of(value, images)
        annotation = annotation_of(values, columns)
    except KeyError as error:
        lacking = columns.lacking([str(error.args[0])], _names(values))
        return BadRow(where, lacking, file=_file_of(values.get(columns.image)))
    except (AnnotationError, RecordError) as error:
        return BadRow(where, str(error), file=_file_of(values[columns.image]))
    extension = PurePath(image.path).suffix[1:].lower() if isinstance(image, LocalFile) else ""
    given = values.get(columns.key)
    if not isinstance(given, str | int | None):
        return BadRow(where, f"the key {short(given)} is an unusable key; a key is text or a whole number")
    key = _own_key(image, value, images) if given is None or given == "" else str(given)
    return SourceRow(where, key or f"{number:09d}", image, annotation, extension)


def _file_of(value: object) -> str:
    """Returns the path in the image column, for messages; "" if the column holds no path, or a very long text."""
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("path")
    return value if isinstance(value, str) and len(value) <= _LONGEST_PATH else ""


def _names(values: Mapping[str, Any]) -> list[str]:
    """Returns the names of the columns. If the column "labels" holds an object, its members are included, such as
    "labels.age".
    """
    inside = values.get("labels")
    members = cast("Mapping[str, object]", inside) if isinstance(inside, Mapping) else {}
    return [*values, *(f"labels.{name}" for name in members)]


def image_of(value: object, images: ImageFolders) -> bytes | LocalFile:
    """Returns the image of a row; `value` is the value of the image column.

    Raises:
        RecordError: If the value is neither a path nor bytes.
    """
    if isinstance(value, Mapping):
        parts = cast("Mapping[str, object]", value)
        # If an object has both, the bytes are the image, and the path only serves as a name (`_own_key`).
        value = parts.get("bytes") or parts.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        if URL.match(value):
            raise RecordError(f"the image is the URL {short(value)}; {NO_URLS}")
        if _ELSEWHERE.match(value) and not os.path.lexists(os.path.join(images.root, value)):  # noqa: PTH118
            raise RecordError(
                f"the image is {short(value)}, which is not a path on this computer; write paths relative to the "
                "table, or to --image-root"
            )
        if _PIXELS.fullmatch(value[:64]):
            raise RecordError(
                f"the image is {short(value)}, a text of numbers; write the images as files, and their paths "
                "(`emocap import` packs the tables of FER2013 and FER+)"
            )
        return LocalFile(images.root, _as_here(value, images), images.table)
    if value in _EMPTY:
        raise RecordError("the image's cell is empty; it must hold a path or encoded bytes")
    raise RecordError(f"the image is {type(value).__name__}, neither a path nor encoded bytes")


def _on_disk(value: object, name: str) -> object:
    """Returns the value of the image column with the name that the file has on the disk (`TableColumns.image_name`)."""
    if not name or not isinstance(value, str) or not value:
        return value
    folder, slash, given = value.replace("\\", "/").rpartition("/")
    stem, dot, suffix = given.rpartition(".")
    # What follows the last dot of a name such as "person.01" is no suffix.
    stem = stem if dot and suffix.lower() in _SUFFIXES else given
    return folder + slash + _PLACE.sub(lambda place: stem if place.group(1) == "stem" else given, name)


def _as_here(path: str, images: ImageFolders) -> str:
    """Returns the path with slashes instead of Windows' backslashes and without blanks around it, unless a file has
    exactly this name.
    """
    changed = path.replace("\\", "/").strip()
    is_foreign = changed != path and not os.path.lexists(os.path.join(images.root, path))  # noqa: PTH118
    return changed if is_foreign else path


def annotation_of(values: Mapping[str, Any], columns: TableColumns) -> bytes:
    """Returns a row's caption and labels as JSON, in the form that an annotation has in a shard.

    `normal_annotation` checks the values later.

    Raises:
        KeyError: If a needed column is missing.
        AnnotationError: If JSON cannot represent a value.
    """
    if _lacks_caption(values, columns):
        captions: list[object] = []
    elif columns.global_ not in values and isinstance(values.get("caption"), Mapping):
        captions = [values["caption"], *map(_view, _further(values, columns))]
    else:
        first, *others = _texts(values[_global_column(values, columns)])
        local, summary = _items(values.get(columns.local)), values.get(columns.summary)
        summary = "" if summary is None else summary
        views = [*others, *_further(values, columns)]
        captions = [{"global": first, "local": local, "summary": summary}, *map(_view, views)]
    # The order of the keys is part of a row's stamp, by which a pack of an earlier version resumes.
    annotation: dict[str, Any] = {"caption": captions[0]} if captions else {}
    annotation["labels"] = _labels(values, columns)
    if captions[1:]:
        annotation["further"] = captions[1:]
    try:
        return json.dumps(annotation, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"the row holds a value that JSON cannot represent ({error})") from error


def _global_column(values: Mapping[str, Any], columns: TableColumns) -> str:
    """Returns the column of the global part of a row.

    In a row without `columns.global_` it is the first of `columns.instead` that has a text. If neither is named by the
    user or by the source, it is the column "caption".
    """
    if columns.global_ in values:
        return columns.global_
    instead = columns.instead or (("caption",) if columns.global_ == STANDARD.global_ else ())
    found = [name for name in instead if isinstance(values.get(name), str | list)]
    return next((name for name in found if values[name]), found[0] if found else columns.global_)


def _lacks_caption(values: Mapping[str, Any], columns: TableColumns) -> bool:
    """Returns whether a row has labels alone, and may have.

    Such a row has neither the global part nor further captions. A row that has only one of the other parts is one whose
    global part was forgotten.
    """
    if columns.captions == "none":
        return True
    parts = map(values.get, (columns.global_, columns.local, columns.summary, "caption", *columns.instead))
    given = [part for part in parts if part not in (None, "", [])]
    return not given and not any(_further(values, columns)) and columns.may_lack_captions(list(values))


def _own_key(image: bytes | LocalFile, value: object, images: ImageFolders) -> str:
    """Returns a key from the path of the image, or "" if the image has no path. `value` is the value of the image
    column, from which `image` was read.
    """
    path = image.path if isinstance(image, LocalFile) else ""
    if isinstance(value, Mapping):
        path = str(cast("Mapping[str, object]", value).get("path") or "")
    if isinstance(image, LocalFile) and path.startswith(("/", "../")):
        # A path through the table's folder gets the same key as one that begins at the root of the images.
        path = os.path.relpath(os.path.join(images.table, path), images.root)  # noqa: PTH118
    return key_of(path)


def _labels(values: Mapping[str, Any], columns: TableColumns) -> dict[str, Any]:
    """Returns the labels that have a value. Booleans become 1 and 0.

    In a label column, a float without a fraction becomes an integer; for example, 0.0 becomes 0. This is needed because
    many programs store a column of integers as floats if some values are missing. The members of an object "labels" are
    not converted, so that an annotation from a shard keeps its bytes.
    """
    given = values.get("labels")
    if columns.labels:
        inside = cast("Mapping[str, object]", given) if isinstance(given, Mapping) else {}
        found = {name: inside[name] if name in inside else _without_fraction(values[name]) for name in columns.labels}
        return _named(_given(found), columns.label_names)
    if given not in _EMPTY and not isinstance(given, Mapping):
        raise AnnotationError('"labels" is not an object; if it is a label, name it (--label labels)')
    return _given({} if given in _EMPTY else given)


def _given(labels: Mapping[str, object]) -> dict[str, object]:
    """Returns the labels without missing values.

    Raises:
        AnnotationError: If a number is infinite, or has more than 53 bits.
    """
    found = {name: int(label) if isinstance(label, bool) else label for name, label in labels.items()}
    for name, label in found.items():
        if isinstance(label, float) and math.isinf(label):
            raise AnnotationError(f"label {name!r} is {label!r}; a label is a text or a finite number")
        if isinstance(label, int) and abs(label) > MAX_WHOLE:
            raise AnnotationError(f"label {name!r} is {short(label)}, a number of more than 53 bits; write it as text")
    return {name: label for name, label in found.items() if not _is_missing(label)}


def _named(labels: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """Returns the labels with the names of their values, if there are names.

    Raises:
        AnnotationError: If a value has no name.
    """
    if not names:
        return labels
    for name, value in labels.items():
        if str(value) not in names:
            raise AnnotationError(f"label {name!r} is {short(value)}, which --label-names does not name")
    return {name: names[str(value)] for name, value in labels.items()}


def _without_fraction(label: object) -> object:
    if isinstance(label, float) and label.is_integer() and abs(label) <= MAX_WHOLE:
        return int(label)
    return label


def _view(value: object) -> object:
    """Returns one of the further captions of an image as a JSON object (a dictionary).

    `value` is such an object, which is returned unchanged, or a text, which becomes the global part of a caption
    without other parts.
    """
    return {"global": value, "local": [], "summary": ""} if isinstance(value, str) else value


def _further(values: Mapping[str, Any], columns: TableColumns) -> list[object]:
    """Returns the further captions of a row.

    They are in the columns that the user has named. If the user has named none, they are in the column "further", which
    may be absent.

    Raises:
        KeyError: If a named column is missing.
    """
    found = [values[name] for name in columns.named_further] or [values.get(name) for name in columns.further]
    return [each for value in found for each in _items(value)]


def _texts(value: object) -> Sequence[object]:
    """Returns `value` if it is a list that is not empty, and otherwise a list that contains `value` alone."""
    return cast("list[object]", value) if isinstance(value, list) and value else [value]


def _items(value: object) -> Sequence[object]:
    """Returns the items of a value. A list is returned unchanged, a text is split at "|", and None gives an empty list.

    Raises:
        AnnotationError: If the value is not a list, a text or None.
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split("|") if part.strip()]
    if value is not None and not isinstance(value, list):
        raise AnnotationError(
            f"{short(value)} is neither a list nor text, as a caption's parts and further ones must be"
        )
    return cast("list[object]", value or [])


def _is_missing(label: object) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))
