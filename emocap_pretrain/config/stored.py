"""Converts settings to the tree that `run.json` and checkpoints store, and reads trees that another version has stored.

A stored config contains every setting, the number of its schema, and the list `set` of the keys that the user has set.
All other keys had their defaults. The key of a setting in a list of sections contains the position of the section in
the list, as in `data.mix.0.url`. A later version may add a setting, if its default keeps the behaviour of the earlier
versions. A version that renames or drops a setting needs a `Migration`. See docs/decisions/20-documents-of-a-run.md.

Settings that a later version has stored may include a setting that this version does not know. If the user did not set
it, its value is the default of the later version. With this default, the later version behaves as this version does, so
the setting is ignored. If the user did set it, its value may have changed what was learned. Then `current` logs a
warning or raises an error.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from emocap_pretrain.config.explain import model_in
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError

Tree = dict[str, Any]
SCHEMA_KEY, SET_KEY = "schema", "set"
# Settings that may change between two attempts of a run, because they only say where, how long and how fast it runs.
# The URLs of the data and of their filter may change too, because a digest identifies both. A name that ends in a dot
# is that of a whole section.
FREE = (
    "steps",
    "name",
    "url",
    "data.url",
    "data.filter",
    "data.webdataset.url",
    "data.captions_from",
    "data.cache",
    "data.cache_gb",
    "cluster.",
    "checkpoint.",
    "health.",
    "micro_batch",
    "engine.zero_stage",
    "engine.compile",
    "engine.offload_optimizer",
    "tracking.",
    "evaluation.",
    "data.workers",
    "data.prefetch",
    "data.error_budget",
    "objective.backend",
    "objective.schedule",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Migration:
    """Describes how settings changed from one schema to the next, by dotted keys.

    Args:
        renamed: The new key of each renamed setting or section, by its old key.
        dropped: For each removed setting, by its key, the one value that is still accepted in stored settings: with it,
            earlier versions behaved as this version always does. Any other value is refused.
    """

    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    dropped: Mapping[str, Any] = field(default_factory=dict[str, Any])


# MIGRATIONS[n] converts schema n to schema n + 1. Version 0.1.0 stored no number of a schema, which means schema 0. A
# new entry is appended by whoever renames or drops a setting; tests/upgrade has the stored settings of each release.
MIGRATIONS: tuple[Migration, ...] = (Migration(),)


def dump(config: Config) -> Tree:
    """Returns the settings as they are stored, with the number of the schema and the keys that the user has set.

    The result is plain JSON without secrets (`Config.stored`). `current` reads it in any later version.
    """
    given = config.model_dump(mode="json", exclude_unset=True)
    return {SCHEMA_KEY: len(MIGRATIONS), SET_KEY: sorted(leaves(_numbered(given))), **config.stored()}


def current(
    stored: Mapping[str, Any], *, decisive: Sequence[str] | None = None, migrations: Sequence[Migration] = MIGRATIONS
) -> Tree:
    """Converts stored settings to this version: migrates them, fills in defaults and leaves out unknown settings.

    If the user had set an unknown setting, a warning is logged. If this setting is decisive, which means that it may
    change what is learned, an error is raised instead.

    Args:
        stored: The settings as `dump` of this or of another version returned them.
        decisive: Prefixes of the keys of decisive settings. By default all settings that must not change during a run
            are decisive.
        migrations: The migrations of this version.

    Raises:
        ConfigError: If the user had set a decisive setting that this version does not have.
    """
    tree = copy.deepcopy(dict(stored))
    schema, given = tree.pop(SCHEMA_KEY, 0), tree.pop(SET_KEY, None)
    if type(schema) is not int or schema < 0:
        raise ConfigError(f"the stored settings say schema={str(schema)[:20]!r}, which is not a version number.")
    # Settings of a newer version have a larger schema: then no migration runs, and what is unknown is left out below.
    for migration in migrations[schema:]:
        _migrate(tree, migration)
    for key, value in _drop_unknown(tree, Config):
        # Version 0.1.0 stored no list `set`, so each of its settings counts as set.
        was_set = not isinstance(given, list) or _touches(key, cast("list[Any]", given))
        if was_set and _matters(key, decisive):
            raise ConfigError(
                f"the stored settings have {key}={repr(value)[:80]}, which this version does not know and which "
                "decides what is learned: use the version that wrote them."
            )
        if was_set:
            log.warning("the stored setting %s is unknown to this version and is ignored", key)
    return filled(tree, Config)


def filled(tree: Mapping[str, Any], section: type[BaseModel]) -> Tree:
    """Returns a copy of a stored section, in which each missing setting has its default.

    A missing setting without a default stays missing.

    The values are not validated, so the result can be compared with other stored settings even if a value is wrong.
    """
    result = dict(tree)
    for name, known in section.model_fields.items():
        key = known.alias or name
        inner = model_in(known.annotation)
        if key not in result and not known.is_required():
            result[key] = to_jsonable_python(known.get_default(call_default_factory=True), by_alias=True)
        value = result.get(key)
        if inner and isinstance(value, dict):
            result[key] = filled(cast("Tree", value), inner)
        elif inner and isinstance(value, list):
            entries = cast("list[Any]", value)
            result[key] = [filled(cast("Tree", each), inner) if isinstance(each, dict) else each for each in entries]
    return result


def differences(before: Tree, after: Tree) -> Iterator[tuple[str, Any, Any]]:
    """Yields the key, the old and the new value of each setting that has changed and must not change during a run.

    A missing value is None. Both trees must be results of `current`, which fills in defaults. Otherwise a missing
    setting would differ from the same setting with its default.
    """
    first, second = leaves(before), leaves(after)
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key) and not _is_free(key):
            yield key, first.get(key), second.get(key)


def data_urls(data: Mapping[str, Any]) -> list[str]:
    """Returns the addresses of the training data in the section `data` of stored settings."""
    if tars := data.get("webdataset"):
        return [tars["url"]]
    return [dataset["url"] for dataset in data["mix"]] or [data["url"]]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Returns the values of a tree by their dotted keys; a list counts as one value."""
    found: Tree = {}
    for key, value in tree.items():
        place = f"{prefix}{key}"
        found |= leaves(cast("Tree", value), f"{place}.") if isinstance(value, dict) else {place: value}
    return found


def _numbered(value: Any) -> Any:
    """Returns a copy of a tree, in which a mapping replaces each list of sections.

    The keys of the mapping are the positions "0", "1", ... in the list. So `leaves` returns keys such as
    `data.mix.0.url`.
    """
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in cast("list[Any]", value)):
        value = {str(number): each for number, each in enumerate(cast("list[Any]", value))}
    if isinstance(value, dict):
        return {key: _numbered(each) for key, each in cast("Tree", value).items()}
    return value


def _migrate(tree: Tree, migration: Migration) -> None:
    for old, new in migration.renamed.items():
        if _has(tree, old):
            value = _pop(tree, old)
            _put(tree, new, value)
    for key, behaves_as in migration.dropped.items():
        if _has(tree, key) and (value := _pop(tree, key)) != behaves_as:
            raise ConfigError(
                f"the stored settings have {key}={repr(value)[:80]}; this version always behaves as with "
                f"{behaves_as!r}: use the version that wrote them."
            )


def _drop_unknown(tree: Tree, section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Removes the settings and sections that this version does not have, and yields their dotted keys and values."""
    known = {each.alias or name: each.annotation for name, each in section.model_fields.items()}
    for key in [key for key in tree if key not in known]:
        yield f"{prefix}{key}", tree.pop(key)
    for key, annotation in known.items():
        inner, value = model_in(annotation), tree.get(key)
        if inner and isinstance(value, dict):
            yield from _drop_unknown(cast("Tree", value), inner, f"{prefix}{key}.")
        elif inner and isinstance(value, list):
            for number, entry in enumerate(cast("list[Any]", value)):
                if isinstance(entry, dict):
                    yield from _drop_unknown(cast("Tree", entry), inner, f"{prefix}{key}.{number}.")


def _is_free(key: str) -> bool:
    return any(key.startswith(free) if free.endswith(".") else key == free for free in FREE)


def _matters(key: str, decisive: Sequence[str] | None) -> bool:
    return not _is_free(key) if decisive is None else key.startswith(tuple(decisive))


def _touches(key: str, given: Iterable[Any]) -> bool:
    return any(each == key or str(each).startswith(f"{key}.") for each in given)


def _has(tree: Tree, key: str) -> bool:
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    return isinstance(node, dict) and last in node


def _pop(tree: Tree, key: str) -> Any:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    return tree.pop(last)


def _put(tree: Tree, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value
