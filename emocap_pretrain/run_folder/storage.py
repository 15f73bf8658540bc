"""Reads and writes the small documents of a run's folder.

Each document is JSON with a schema version. The reader limits the size of documents, upgrades those of older versions,
fills in defaults, and drops fields that a newer version added. For a document that cannot be used, the reader returns
an `Unreadable` value and raises no error. Every caller therefore has to handle that case, and no document crashes a
run. Decision 20 lists what each caller does.

`documents.py` defines the types of the documents and one `DocumentKind` for each. Other modules of this folder read and
write the documents: `attempts`, `folder`, `requests` and `unsent` serve the run itself, and `state` serves the commands
that show the state of a run.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar, cast

from emocap_shards.errors import NotFound, TooLarge
from emocap_shards.store import Store
from pydantic import TypeAdapter, ValidationError

SMALL_BYTES = 1 << 20  # The limit of most documents. A limit is needed because somebody else may have written them.
DEEPEST = 64  # Levels of nested lists and mappings; documents of this package have fewer than 16.
# How often an answer of the store that looks wrong is requested, and the pause in between. One stale listing or one
# flipped bit must not count as a loss (decision 21).
READINGS, PAUSE_S = 3, 0.05

Form = TypeVar("Form")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Takes the place of a document that exists and cannot be used: it is damaged, too large, or has wrong fields.

    Args:
        path: Store and path of the document, for messages.
        reason: Why the document cannot be used, without a full stop.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} cannot be read ({self.reason})"


@dataclass(frozen=True)
class DocumentKind(Generic[Form]):
    """Defines one kind of document: its fields, its schema version, and how older versions are read.

    To add a field, give it a default in `form`; nothing else changes. To rename a field or to change its meaning,
    append a function to `upgrades`. The schema version then grows by one:

        STATUS = DocumentKind(Status, (renamed({"start": "attempt"}),))  # Schema 1; schema 0 had the field `start`.

    If a document has a newer schema than the program, the program drops the fields that it does not know.

    Args:
        form: A frozen dataclass, which defines the fields with their bounds and defaults.
        upgrades: `upgrades[n]` turns the body of schema n into that of schema n + 1, or raises ValueError. A document
            without a schema version has schema 0, which version 0.1.0 of the package wrote. Documents are now written
            with the schema `len(upgrades)`.
        limit_bytes: Largest size of a document that is read.
        indent: Spaces of each level; None writes the whole document in one line, which suits long lists.
    """

    form: type[Form]
    upgrades: Sequence[Callable[[Any], Any]] = (lambda body: body,)
    limit_bytes: int = SMALL_BYTES
    indent: int | None = 1

    @cached_property
    def _adapter(self) -> TypeAdapter[Form]:
        return TypeAdapter(self.form)

    @property
    def schema(self) -> int:
        """Returns the schema version with which documents of this kind are written now."""
        return len(self.upgrades)

    def dump(self, document: Form) -> bytes:
        """Returns the document as JSON with its schema version."""
        tree = self._adapter.dump_python(document, mode="json")
        separators = (",", ":") if self.indent is None else None
        body = {"schema": self.schema, **tree}
        return json.dumps(body, indent=self.indent, separators=separators, ensure_ascii=False).encode()

    def parse(self, data: bytes) -> Form:
        """Reads a document from bytes.

        Raises:
            ValueError: If the document cannot be used. The message is the reason, in one line.
        """
        # Python's parser also accepts NaN and Infinity, which JSON does not have. It raises RecursionError for a text
        # that is nested too deeply for it.
        try:
            body = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError("it is not JSON" if data.strip() else "it is empty") from error
        return self.of(body)

    def of(self, body: Any) -> Form:
        """Makes a document from decoded JSON. It upgrades older schemas, and drops unknown fields of newer schemas.

        Raises:
            ValueError: If the document cannot be used. The message is the reason, in one line.
        """
        # This comes before the validation, which descends by recursion.
        if _is_deep(body):
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        schema = _schema_of(body)
        try:
            # Each upgrade leads from one schema to the next. For a document of a newer schema the slice is empty.
            for upgrade in self.upgrades[schema:]:
                body = upgrade(body)
            return self._adapter.validate_python(body)
        except ValidationError as error:
            newer = f"a newer version wrote it, as schema {schema}: " if schema > self.schema else ""
            raise ValueError(f"{newer}{_first_problem(error)}") from error


def read(store: Store, path: str, kind: DocumentKind[Form]) -> Form | Unreadable | None:
    """Returns the document at a path; None if there is no document, `Unreadable` if it cannot be used.

    Raises:
        StoreError: If the store does not answer.
    """
    try:
        return kind.parse(store.read(path, limit_bytes=kind.limit_bytes))
    except NotFound:
        return None
    except (ValueError, TooLarge) as error:
        reason = f"it is larger than {kind.limit_bytes} bytes" if isinstance(error, TooLarge) else str(error)
        return Unreadable(f"{store.url}/{path}", reason)


def read_repeatedly(read_once: Callable[[], Value]) -> Iterator[Value]:
    """Yields the results of up to `READINGS` calls of `read_once`, with pauses in between.

    The caller stops at the first result that looks right. A later result may differ, because a store may answer with an
    older state. For example, the following expression is False only if `READINGS` requests in a row do not find the
    object:

        any(read_repeatedly(lambda: store.exists(path)))
    """
    for reading in range(READINGS):
        if reading:
            time.sleep(PAUSE_S)
        yield read_once()


def write(store: Store, path: str, kind: DocumentKind[Form], document: Form) -> None:
    """Writes a document to a path, and replaces an earlier document there.

    Raises:
        StoreError: If the store refuses the document.
    """
    store.put(path, kind.dump(document))


def renamed(names: dict[str, str]) -> Callable[[Any], Any]:
    """Returns an upgrade that renames fields; `names` maps old names to new ones."""

    def upgrade(body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {names.get(name, name): value for name, value in cast("dict[str, Any]", body).items()}

    return upgrade


def _schema_of(body: Any) -> int:
    """Returns the schema version of a body. A list, or a mapping without a version, has schema 0.

    Raises:
        ValueError: If the version is not an integer, or is below 0.
    """
    schema: Any = cast("dict[str, Any]", body).get("schema", 0) if isinstance(body, dict) else 0
    if type(schema) is not int or schema < 0:  # `isinstance` would accept a bool.
        raise ValueError(f"schema={str(schema)[:20]!r} is not the number of a version")
    return schema


def _is_deep(body: Any) -> bool:
    # The loop goes level by level. A recursive function would itself fail for a body that is nested deeply.
    level: list[Any] = [body] if isinstance(body, dict | list) else []
    for _ in range(DEEPEST):
        inner = [cast("dict[str, Any]", each).values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:80]
    return f"{f'{where}: ' if where else ''}{first['msg'].removeprefix('Input ').lower()}"


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
