"""One sample's stretch of a tar -> its members."""

import io
import tarfile

_BLOCK = tarfile.BLOCKSIZE
_FILE = b"0"
_USTAR = b"ustar\x0000"


Places = dict[str, tuple[int, int]]


def members_of(block: bytes) -> Places:
    """Extension -> from where to where the member goes; the extension is what follows the first dot of the name.

    Headers that a plain ustar writer makes are read in place; all others (pax, GNU, other types) by tarfile, which
    takes thirty times as long.

    Raises:
        tarfile.TarError: If the bytes are no tar.
        ValueError: If a member comes twice, does not end inside the block, or is no plain file.
    """
    members: Places = {}
    position = 0
    while position < len(block):
        if not _is_plain(block, position):
            return _by_tarfile(block)
        name = block[position : block.index(0, position, position + 100)].decode()
        start = position + _BLOCK
        stop = start + int(block[position + 124 : position + 135], 8)
        _add(members, name, start, stop, len(block))
        position = stop + -stop % _BLOCK
    return members


def _is_plain(block: bytes, position: int) -> bool:
    """A regular file with a short name, its size in eleven octal digits."""
    return (
        block.startswith(_USTAR, position + 257)
        and block.startswith(_FILE, position + 156)
        and block.startswith(b"\0", position + 345)
    )


def _by_tarfile(block: bytes) -> Places:
    members: Places = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    raise ValueError(f"member {member.name!r} is no plain file")
                _add(members, member.name, member.offset_data, member.offset_data + member.size, len(block))
    except (OverflowError, RecursionError) as error:  # sizes of 80 bits, thousands of headers for one member
        raise ValueError(f"its headers are no tar's ({error})") from error
    return members


def _add(members: Places, name: str, start: int, stop: int, end: int) -> None:
    extension = name.rsplit("/", 1)[-1].partition(".")[2]
    is_whole = start <= stop <= end
    if extension in members or not is_whole:
        raise ValueError(f"member {name!r} {'comes twice' if is_whole else 'is cut'}")
    members[extension] = start, stop
