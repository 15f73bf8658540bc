"""Makes Triton's interpreter faster, to the same results: importing this module is enough.

Triton 3.7 replaces the functions of `triton.language` at every launch of a kernel and once more at every call of a
device function, for which it inspects a thousand names. That takes half of the time of these tests. Their process does
nothing but interpret, so this module replaces the functions once and for good.
"""

import os
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from triton import language

interpreter: Any = import_module("triton.runtime.interpreter")


def _nothing_to_replace(_function: Any) -> Any:
    return interpreter._LangPatchScope()


if os.environ.get("TRITON_INTERPRET") == "1":
    # A kernel sees `triton.language`, and the functions of Triton's own library see `triton.language.core`.
    seen = {"tl": language, "core": language.core}
    interpreter._patch_lang(SimpleNamespace(__globals__=seen))
    interpreter._patch_lang = _nothing_to_replace
