"""Recognises text files that are not UTF-8, and advises how to convert them."""

import codecs
from pathlib import Path

from emocap_shards.errors import RecordError

NO_UTF8 = (
    "it is not UTF-8; save the table as UTF-8, as with `iconv -f GB18030 -t UTF-8` if it comes from a Chinese Windows"
)


def refuse_utf16(head: bytes, path: Path) -> None:
    """Checks that the first two bytes of a file, `head`, are not the byte order mark of UTF-16.

    Raises:
        RecordError: If they are.
    """
    if head[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        raise RecordError(f"{path} is UTF-16; save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8 OLD > NEW`.")
