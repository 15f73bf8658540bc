"""Recognises text files that are not UTF-8, and says what to do with them."""

import codecs
from pathlib import Path

from emocap_shards.errors import RecordError

NO_UTF8 = (
    "it is not UTF-8; save the table as UTF-8, as with `iconv -f GB18030 -t UTF-8` if it comes from a Chinese Windows"
)


def refuse_utf16(head: bytes, path: Path) -> None:
    """Returns only if the beginning of a file is not that of UTF-16.

    Raises:
        RecordError: If it is.
    """
    if head[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        raise RecordError(f"{path} is UTF-16; save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8 OLD > NEW`.")
