import io
import tarfile
from contextlib import suppress

import pytest
from emocap_shards.members import members_of
from hypothesis import example, given
from hypothesis import strategies as st

names = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=130)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)


def packed(members, kind):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return file.getvalue()[:end]


@given(
    names,
    st.dictionaries(st.sampled_from(["jpg", "json", "cls.txt"]), st.binary(max_size=1500)),
    st.sampled_from(FORMATS),
)
def test_members_of_any_kind_of_tar_are_read(key, files, kind):
    try:
        block = packed({f"{key}.{extension}": data for extension, data in files.items()}, kind)
    except (ValueError, UnicodeEncodeError):
        return  # ustar has no room for this name
    assert {name: block[slice(*place)] for name, place in members_of(block).items()} == files


@given(st.binary(max_size=2000))
@example(b"\0" * 512)
def test_no_bytes_crash_the_parser_or_hold_it(data):
    with suppress(tarfile.TarError, ValueError):
        assert all(isinstance(name, str) for name in members_of(data))


@given(st.integers(0, 511), st.integers(0, 255))
def test_no_changed_header_byte_does(place, value):
    block = bytearray(packed({"a.jpg": b"x" * 700, "a.json": b"{}"}, tarfile.USTAR_FORMAT))
    block[place] = value
    if not 148 <= place < 156:  # With a correct checksum, tarfile reads further.
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    with suppress(tarfile.TarError, ValueError):
        members_of(bytes(block))


@pytest.mark.parametrize("size", [b"-0000000001\0", b"77777777777\0", b"not octal  \0"])
def test_a_size_that_leads_outside_is_refused(size):
    block = bytearray(packed({"a.jpg": b"x" * 700}, tarfile.USTAR_FORMAT))
    block[124:136] = size
    with pytest.raises((tarfile.TarError, ValueError)):
        members_of(bytes(block))


def header(kind, size):
    """Returns one header with a correct checksum."""
    info = tarfile.TarInfo("a.jpg")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = size
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_eighty_bits_is_refused(kind):
    with pytest.raises((tarfile.TarError, ValueError)):
        members_of(header(kind, b"\x80" + (1 << 80).to_bytes(11, "big")) * 2)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_thousands_of_headers_for_one_member_are_refused(kind):
    with pytest.raises((tarfile.TarError, ValueError)):
        members_of(header(kind, b"00000000000\0") * 3000)


def test_a_member_that_comes_twice_is_refused():
    block = packed({"a.jpg": b"x"}, tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="occurs twice"):
        members_of(block + block)
