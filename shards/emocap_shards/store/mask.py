"""Texts and URLs without the secrets in them."""

import re
from urllib.parse import urlsplit

MASK = "***"
_USER = re.compile(r"(?<=://)[^/@\s?#]+@")
# A query belongs to a URL up to a blank, a quote or a bracket; every value in it goes, for names of secrets vary.
_QUERY = re.compile(r"(?P<path>://[^\s?'\"<>]+)\?[^\s'\"<>)]+")
# NoCredentialsError: the name of an error, with prose behind it, is no key with a value.
_NAMED = re.compile(
    r"(?P<name>(?:secret|password|passwd|token|signature|credential|sig|(?:access|account|api)[_-]?key)[\w-]*['\"]?\s*(?:=|(?<!Error)(?<!Exception):)\s*['\"]?)[^\s'\",;&)]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text; users, passwords and queries of URLs in it become ***, and so do values named like secrets."""
    text = _USER.sub(f"{MASK}@", text)
    text = _QUERY.sub(rf"\g<path>?{MASK}", text)
    return _NAMED.sub(rf"\g<name>{MASK}", text)


def masked_url(url: str) -> str:
    """The URL with *** for user, password and query."""
    return _QUERY.sub(rf"\g<path>?{MASK}", _USER.sub(f"{MASK}@", url))


def holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or bool(parts.query)
