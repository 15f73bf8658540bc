"""Secrets of addresses, hidden before they reach a log, an error or a tracked value."""

import re

_USER = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with `***` for user and password of its URLs and for the values of their secret parameters."""
    return _QUERY.sub(r"\1***", _USER.sub("://***@", text))
