"""The one mask for texts: what a person, a log or a tracker is shown holds no secret.

A secret is known by its place or by its value. Places: user and password of a URL, its query, an `Authorization`
header, a value beside a name such as `password` or `access_token`. Values: those of the environment's credential
variables, and what a config took from the environment (`remember`). A secret that is neither is not found.
"""

import functools
import json
import os
import re
import threading
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 6
"""Shorter values would be found in the middle of words; they are hidden by their place alone."""
SHORTEST_ID = 16
"""The ids of keys that AWS makes have this length at least."""

# A blank or a double quote ends a URL: passwords are written with anything else, also / ? # and @.
_LOCAL = ("sqlite", "file", "local")
_URL = re.compile(rf'(?:{"|".join(_LOCAL)})?://[^\s"]+')
_HEADER = re.compile(r"(?P<name>\bauthorization['\"]?\s*[=:]\s*['\"]?)[^'\"\r\n]+", re.IGNORECASE)
_SCHEME = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)(?=[^\s\"']*[0-9=_./+-])[^\s\"']{6,}", re.IGNORECASE)
# A letter after the word makes it another one: tokens, tokenizer, credentials, SignatureDoesNotMatch.
_NAME = (
    r"(?:secret|password|passwd|passphrase|token|signature|credential|sig"
    r"|(?:access|account|api|private|shared|encryption|subscription)[_-]?key)(?![A-Za-z])[\w-]{0,40}"
)
_QUOTED = re.compile(
    rf"(?P<name>{_NAME}['\"]?\s*[=:]\s*b?(?P<quote>['\"]))(?:\\.|(?!(?P=quote)).)*", re.IGNORECASE | re.DOTALL
)
_NAMED = re.compile(rf"(?P<name>{_NAME}['\"]?\s*(?:=|:))(?P<gap>[ \t]*)(?!['\"{{\[]|b['\"])[^\s\"]+", re.IGNORECASE)

_SECRET_WORDS = {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "KEY", "SAS", "CREDENTIAL"}
_PLACES = {"FILE", "PATH", "DIR", "FOLDER", "URL", "URI", "ENDPOINT", "MODE", "NAME"}
_FOLDERS = {"PWD", "OLDPWD"}

_remembered: set[str] = set()
_lock = threading.Lock()


def masked(text: str) -> str:
    """The text with *** for each secret in it. Masking twice changes nothing."""
    if known := secrets():
        text = _any_of(known).sub(MASK, text)
    text = _URL.sub(lambda match: masked_url(match[0]), text)
    for pattern in (_HEADER, _SCHEME):
        text = pattern.sub(rf"\g<name>{MASK}", text)
    return _NAMED.sub(rf"\g<name>\g<gap>{MASK}", _QUOTED.sub(rf"\g<name>{MASK}", text))


def masked_url(url: str) -> str:
    """The URL with *** for user, password and query.

    What comes before the last @ is taken for user and password, even where it is an object's name with an @ in it:
    half of all AWS keys have a slash, and then a parser finds another user than the person meant.
    """
    scheme, separator, rest = url.partition("://")
    before, at, place = _userinfo(scheme, rest)
    if "?" in before:  # A password with a question mark, or a query with an @.
        return f"{scheme}{separator}{MASK}"
    host, question, query = place.partition("?")
    return f"{scheme}{separator}{MASK if before else ''}{at}{host}{question}{MASK if query else ''}"


def _userinfo(scheme: str, rest: str) -> tuple[str, str, str]:
    before, at, place = rest.rpartition("@")
    if scheme.endswith(_LOCAL) and before.startswith("/") and ":" not in before:
        return "", "", rest  # A home folder such as /home/anna@example.org.
    return before, at, place


def public_url(url: str) -> str:
    """The URL with *** for the user, password and query that every parser finds in it; an @ in a name stays.

    Only for a URL of which `holds_secret` is true for no other reason.
    """
    scheme, separator, rest = url.partition("://")
    netloc = _netloc(rest)
    user, at, host = netloc.rpartition("@")
    path, question, query = rest[len(netloc) :].partition("?")
    return f"{scheme}{separator}{MASK if user else ''}{at}{host}{path}{question}{MASK if query else ''}"


def holds_secret(url: str) -> bool:
    """Whether the URL has a user, a password or a query."""
    rest = url.partition("://")[2]
    return "@" in _netloc(rest) or "?" in rest or is_ambiguous(url)


def is_ambiguous(url: str) -> bool:
    """Whether a person may have meant as password what a parser takes for host, port and path."""
    rest = url.partition("://")[2]
    before = rest.rpartition("@")[0]
    return ":" in before and "@" not in _netloc(rest)


def _netloc(rest: str) -> str:
    return re.split("[/?#]", rest, maxsplit=1)[0]


def remember(*values: str) -> None:
    """Have these values masked in this process from now on, wherever they appear in a text.

    Of a URL its user, password and query are remembered, and not its place. Numbers and short texts are left out.
    """
    with _lock:
        _remembered.update(found for value in values for found in _parts(value))


def secrets() -> tuple[str, ...]:
    """Every value that is masked: of the environment as it is now, and what was remembered; for other processes."""
    with _lock:
        return tuple(sorted(_remembered.union(*(_parts(value) for value in _credentials())), key=len, reverse=True))


def _credentials() -> Iterator[str]:
    """Values of the environment that are secrets by the name of their variable, and URLs with a user."""
    for name, value in os.environ.items():
        # The id of a key is no secret by itself, and one that a person chose, as for a local server, is a word in use.
        if name.upper().endswith("_ID") and len(value) < SHORTEST_ID:
            continue
        if _is_secret(name) or ("://" in value and "@" in value):
            yield value


@functools.lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    words = name.upper().split("_")
    if name.upper() in _FOLDERS or words[-1] in _PLACES:
        return False
    if name.upper().startswith(("AZURE_STORAGE_", "FSSPEC_")):
        return words[-1] not in {"ACCOUNT", "PROTOCOL"}
    return any(word in _SECRET_WORDS or word.endswith(("PASSWORD", "SECRET")) for word in words)


@functools.lru_cache(maxsize=4096)
def _parts(value: str) -> frozenset[str]:
    """The secrets in a value: the value itself, or those in a URL, in JSON or in a connection string."""
    return frozenset(part for part in _split(value.strip()) if len(part) >= SHORTEST and not _is_number(part))


def _split(value: str) -> Iterator[str]:
    if value.startswith("{"):
        yield from _in_json(value)
    elif "://" in value:
        scheme, _, rest = value.partition("://")
        user, at, place = _userinfo(scheme, rest)
        name, colon, password = user.partition(":")
        yield from (user, password, *(() if colon else (name,))) if at else ()
        yield place.partition("?")[2]
    elif ";" in value and "=" in value:
        yield value
        yield from (part.partition("=")[2] for part in value.split(";") if _NAMED.match(part.strip()) or "Key=" in part)
    else:
        yield value


def _in_json(value: str) -> Iterator[str]:
    try:
        tree = json.loads(value)
    except (ValueError, RecursionError):
        yield value
        return
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            left.extend(each for key, each in node.items() if not isinstance(each, str) or _is_secret(str(key)))
        elif isinstance(node, str):
            yield node


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return len(text) < 12


@functools.lru_cache(maxsize=64)
def _any_of(values: tuple[str, ...]) -> re.Pattern[str]:
    forms = {form for value in values for form in _forms(value)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))


def _forms(value: str) -> set[str]:
    """The value as it may appear: as it is, in a URL, in JSON, in Python's repr."""
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, quote(value), quote(value, safe=""), quote_plus(value), *escaped}
