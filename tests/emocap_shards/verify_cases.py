"""Helps the tests of `verify`: functions that damage a file, and a short form of a result."""

from pathlib import Path

from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.inspecting.verify import Verification

FIRST, SHARD, LAST = (f"shard-00000{number}.tar" for number in range(3))
INDEX = "shard-000001.npy"


def only(verdict: Verification) -> Fault:
    (fault,) = verdict.faults
    assert not verdict.whole
    assert verdict.kinds == {fault.kind: 1}
    assert verdict.lost == fault.lost
    assert str(fault).startswith(fault.shard)
    assert str(fault).endswith(f"; {fault.cure}.")
    return fault


def kinds(verdict: Verification) -> set[FaultKind]:
    assert set(verdict.kinds) == {fault.kind for fault in verdict.faults}
    return set(verdict.kinds)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
