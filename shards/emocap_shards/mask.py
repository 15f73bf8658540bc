"""Masks secrets in every text that a person, a log or a tracker sees.

A secret is recognised by its place in the text or by its value. The places are the user and password of a URL, the
query of a URL, an `Authorization` header, and a value after a name such as `password` or `access_token`. The values are
those of the environment variables that hold credentials, and those that were registered with `remember`. A secret that
is recognised neither by its place nor by its value is not masked.
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
"""Values shorter than this also occur inside ordinary words, so they are masked only by their place."""
SHORTEST_ID = 16
"""Key ids that AWS creates are at least this long."""

# A blank or a double quote ends a URL. A password may contain any other character, also / ? # and @.
_LOCAL = ("sqlite", "file", "local")
_URL = re.compile(rf'(?:{"|".join(_LOCAL)})?://[^\s"]+')
_HEADER = re.compile(r"(?P<name>\bauthorization['\"]?\s*[=:]\s*['\"]?)[^'\"\r\n]+", re.IGNORECASE)
# The value must have a digit or one of =_./+- in it, so that prose such as "basic knowledge" is not masked.
_SCHEME = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)(?=[^\s\"']*[0-9=_./+-])[^\s\"']{6,}", re.IGNORECASE)
# A letter after the word makes it a different word: tokens, tokenizer, credentials, SignatureDoesNotMatch.
_NAME = (
    r"(?:secret|password|passwd|passphrase|token|signature|credential|sig"
    r"|(?:access|account|api|private|shared|encryption|subscription)[_-]?key)(?![A-Za-z])[\w-]{0,40}"
)
_QUOTED = re.compile(
    rf"(?P<name>{_NAME}['\"]?\s*[=:]\s*b?(?P<quote>['\"]))(?:\\.|(?!(?P=quote)).)*", re.IGNORECASE | re.DOTALL
)
# Quoted values are those of _QUOTED. A bracket or a brace begins an object, whose members are matched one by one.
_NAMED = re.compile(rf"(?P<name>{_NAME}['\"]?\s*(?:=|:))(?P<gap>[ \t]*)(?!['\"{{\[]|b['\"])[^\s\"]+", re.IGNORECASE)

_SECRET_WORDS = {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "KEY", "SAS", "CREDENTIAL"}
_PLACES = {"FILE", "PATH", "DIR", "FOLDER", "URL", "URI", "ENDPOINT", "MODE", "NAME"}
_FOLDERS = {"PWD", "OLDPWD"}

_remembered: set[str] = set()
_lock = threading.Lock()  # It protects `_remembered`.


def masked(text: str) -> str:
    """Returns the text with *** in place of each secret. Masking a second time changes nothing.

    Example:
        ```python
        masked("cannot read s3://KEY:SE/CRET@bucket/x")  # "cannot read s3://***@bucket/x"
        ```
    """
    if known := secrets():
        text = _any_of(known).sub(MASK, text)
    text = _URL.sub(lambda match: masked_url(match[0]), text)
    for pattern in (_HEADER, _SCHEME):
        text = pattern.sub(rf"\g<name>{MASK}", text)
    return _NAMED.sub(rf"\g<name>\g<gap>{MASK}", _QUOTED.sub(rf"\g<name>{MASK}", text))


def masked_url(url: str) -> str:
    """Returns the URL with *** in place of user, password and query.

    Everything before the last @ is treated as user and password, even if this @ is part of an object's name. The reason
    is that half of all secret keys of AWS contain a slash. A URL parser would take this slash as the end of the host,
    and would leave the rest of the key visible.
    """
    scheme, separator, rest = url.partition("://")
    before, at, place = _userinfo(scheme, rest)
    if "?" in before:  # This is a password with a question mark, or a query with an @.
        return f"{scheme}{separator}{MASK}"
    host, question, query = place.partition("?")
    return f"{scheme}{separator}{MASK if before else ''}{at}{host}{question}{MASK if query else ''}"


def _userinfo(scheme: str, rest: str) -> tuple[str, str, str]:
    before, at, place = rest.rpartition("@")
    if scheme.endswith(_LOCAL) and before.startswith("/") and ":" not in before:
        return "", "", rest  # This is a home folder such as /home/anna@example.org.
    return before, at, place


def public_url(url: str) -> str:
    """Returns the URL with *** in place of the user, password and query that a URL parser finds.

    Unlike `masked_url`, it keeps a path that contains an @. The URL must not be ambiguous (`is_ambiguous`), because a
    part of a password could then remain visible.
    """
    scheme, separator, rest = url.partition("://")
    netloc = _netloc(rest)
    user, at, host = netloc.rpartition("@")
    path, question, query = rest[len(netloc) :].partition("?")
    return f"{scheme}{separator}{MASK if user else ''}{at}{host}{path}{question}{MASK if query else ''}"


def holds_secret(url: str) -> bool:
    """Returns whether the URL has a user, a password or a query, or is ambiguous (`is_ambiguous`)."""
    rest = url.partition("://")[2]
    return "@" in _netloc(rest) or "?" in rest or is_ambiguous(url)


def is_ambiguous(url: str) -> bool:
    """Returns whether a URL parser may read a part of a password as host, port or path.

    This happens if a password contains an unescaped slash, question mark or hash.
    """
    rest = url.partition("://")[2]
    before = rest.rpartition("@")[0]
    return ":" in before and "@" not in _netloc(rest)


def _netloc(rest: str) -> str:
    return re.split("[/?#]", rest, maxsplit=1)[0]


def remember(*values: str) -> None:
    """Registers secret values. From now on, this process masks them in every text.

    If a value is a URL, only its user, password and query are registered. Numbers and short texts are ignored.
    """
    with _lock:
        _remembered.update(found for value in values for found in _parts(value))


def secrets() -> tuple[str, ...]:
    """Returns all secrets that are masked by their value: those in environment variables, and the registered ones.

    Another process can register the result with `remember`, so that it masks the same secrets.
    """
    with _lock:
        return tuple(sorted(_remembered.union(*(_parts(value) for value in _credentials())), key=len, reverse=True))


def _credentials() -> Iterator[str]:
    """Yields the values of the environment variables that hold credentials.

    These are variables whose name marks a secret, such as `API_TOKEN`, and those whose value is a URL with a user.
    """
    for name, value in os.environ.items():
        # A key id alone is not a secret. A short one was chosen by a person, as for a local server, and is often an
        # ordinary word, which would then be masked everywhere.
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
    """Returns the secrets in a value. Short texts and numbers do not count as secrets.

    In a URL and in JSON, only parts are secrets, such as the password. A connection string (`name=value;...`) is a
    secret as a whole. In addition, each value in it whose name marks a secret, such as `AccountKey`, is a secret. Any
    other value is a secret as a whole.
    """
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
        # A connection string, such as Azure's: its secret parts may also appear alone.
        yield from (part.partition("=")[2] for part in value.split(";") if _NAMED.match(part.strip()) or "Key=" in part)
    else:
        yield value


def _in_json(value: str) -> Iterator[str]:
    try:
        tree = json.loads(value)
    except (ValueError, RecursionError):
        yield value
        return
    # A loop and not a recursion, because the document may be nested to any depth.
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
    # A regular expression takes the first alternative that matches, so a longer form comes before a shorter one that it
    # contains.
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))


def _forms(value: str) -> set[str]:
    """Returns the forms in which a text may contain the value: unchanged, or escaped for a URL, for JSON or by repr."""
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, quote(value), quote(value, safe=""), quote_plus(value), *escaped}
