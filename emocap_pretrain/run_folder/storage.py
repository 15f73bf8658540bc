"""One reader and one writer for the small documents of a run's folder.

Each document is JSON with a schema version. The reader bounds its size, migrates what an older version wrote, fills in
defaults and drops fields that a newer version added. What it cannot use comes back as an `Unreadable` value, so that
every caller decides in the open what that means; a document never ends a run or a command by its content.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar, cast

from emocap_shards.errors import NotFound, TooLarge
from emocap_shards.store import Store
from pydantic import TypeAdapter, ValidationError

SMALL_BYTES = 1 << 20
DEEPEST = 64  # Levels of lists and mappings; none of our documents has a fourth of them.

Form = TypeVar("Form")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A document that is there and cannot be used: damaged, too large, or not a document of ours.

    Args:
        path: Store and path, for messages.
        reason: Why, without a full stop.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} cannot be read ({self.reason})"


@dataclass(frozen=True)
class DocumentKind(Generic[Form]):
    """A kind of document.

    Args:
        form: A frozen dataclass; it says which fields there are, their bounds and defaults.
        upgrades: `upgrades[n]` turns the body of schema n into that of schema n + 1, or raises ValueError. A document
            without a version is of schema 0, which version 0.1.0 wrote; what is written now has the schema
            `len(upgrades)`.
        limit_bytes: A larger document is not read.
    """

    form: type[Form]
    upgrades: Sequence[Callable[[Any], Any]] = (lambda body: body,)
    limit_bytes: int = SMALL_BYTES

    @cached_property
    def _adapter(self) -> TypeAdapter[Form]:
        return TypeAdapter(self.form)

    @property
    def schema(self) -> int:
        return len(self.upgrades)

    def dump(self, document: Form) -> bytes:
        tree = self._adapter.dump_python(document, mode="json")
        return json.dumps({"schema": self.schema, **tree}, indent=1, ensure_ascii=False).encode()

    def parse(self, data: bytes) -> Form:
        """The document in these bytes.

        Raises:
            ValueError: With the reason, in one line, why it cannot be used.
        """
        try:
            body = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError("it is not JSON" if data.strip() else "it is empty") from error
        return self.of(body)

    def of(self, body: Any) -> Form:
        """The document with this content.

        Raises:
            ValueError: As `parse` does.
        """
        if _is_deep(body):
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        schema = _schema_of(body)
        try:
            for upgrade in self.upgrades[schema:]:
                body = upgrade(body)
            return self._adapter.validate_python(body)
        except ValidationError as error:
            newer = f"a newer version wrote it, as schema {schema}: " if schema > self.schema else ""
            raise ValueError(f"{newer}{_first_problem(error)}") from error


def read(store: Store, path: str, kind: DocumentKind[Form]) -> Form | Unreadable | None:
    """The document at a path; None where there is none.

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


def write(store: Store, path: str, kind: DocumentKind[Form], document: Form) -> None:
    store.put(path, kind.dump(document))


def renamed(names: dict[str, str]) -> Callable[[Any], Any]:
    """An upgrade that gives fields new names."""

    def upgrade(body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {names.get(name, name): value for name, value in cast("dict[str, Any]", body).items()}

    return upgrade


def _schema_of(body: Any) -> int:
    """The schema that a body claims; lists and mappings without one are of version 0.1.0."""
    schema: Any = cast("dict[str, Any]", body).get("schema", 0) if isinstance(body, dict) else 0
    if type(schema) is not int or schema < 0:
        raise ValueError(f"schema={str(schema)[:20]!r} is not the number of a version")
    return schema


def _is_deep(body: Any) -> bool:
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
