"""Makes Triton's interpreter faster, to the same results: importing this module is enough.

Triton 3.7 replaces the functions of `triton.language` at every launch of a kernel and once more at every call of a device
function, for which it inspects a thousand names. That takes half of the time of these tests, whose process does nothing
but interpret, so this module replaces the functions once and for good.
"""

import os
from types import SimpleNamespace
from typing import Any, cast

from triton import language
from triton.runtime import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    # A kernel sees `triton.language`, and the functions of Triton's own library see `triton.language.core`.
    seen = {"tl": language, "core": language.core}
    interpreter._patch_lang(cast("Any", SimpleNamespace(__globals__=seen)))
    interpreter._patch_lang = lambda _: interpreter._LangPatchScope()
