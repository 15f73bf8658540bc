"""Finds the two members (files) of a sample, image and annotation, within the bytes of the sample in its tar."""

import io
import tarfile

_BLOCK = tarfile.BLOCKSIZE
_FILE = b"0"
_USTAR = b"ustar\x0000"


Places = dict[str, tuple[int, int]]


def members_of(block: bytes) -> Places:
    """Returns a mapping from the extension of each member to the (start, stop) of the member's contents in `block`.

    `block` holds the bytes of one sample in its tar. An extension is the part of a file name after the first dot. This
    function itself reads the headers of plain ustar files. If there are other headers (pax, GNU, other types), it uses
    `tarfile`, which takes thirty times as long.

    Raises:
        tarfile.TarError: If the bytes are not a tar.
        ValueError: If a member occurs twice, does not end inside the block, or is not a plain file.
    """
    # Fields of a ustar header: the name in bytes 0 to 99, the size in octal digits in 124 to 134, the type in 156, the
    # magic number and the version in 257 to 264, and a prefix of long names from 345 on. Contents are padded to whole
    # blocks.
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
    """Returns whether the tar header at `position` is that of a regular file in ustar format with a short name."""
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
                    raise ValueError(f"member {member.name!r} is not a plain file")
                _add(members, member.name, member.offset_data, member.offset_data + member.size, len(block))
    except (OverflowError, RecursionError) as error:  # A size of 80 bits, or thousands of headers for one member.
        raise ValueError(f"its headers are not those of a tar ({error})") from error
    return members


def _add(members: Places, name: str, start: int, stop: int, end: int) -> None:
    extension = name.rsplit("/", 1)[-1].partition(".")[2]
    is_whole = start <= stop <= end
    if extension in members or not is_whole:
        raise ValueError(f"member {name!r} {'occurs twice' if is_whole else 'is cut'}")
    members[extension] = start, stop
