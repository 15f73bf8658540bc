"""Tests that wrong samples are found, although every digest is right because they were packed so."""

import pytest
from emocap_shards.inspecting.faults import FaultKind
from emocap_shards.inspecting.verify import verify
from forged import ANNOTATION, END, forge, sample
from shard_cases import encode
from verify_cases import FIRST, SHARD, kinds, only


def test_a_key_in_two_shards_is_found_though_every_digest_holds(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b")], [sample("c"), sample("b"), sample("a")]])
    for quick in (True, False):
        fault = only(verify(tmp_path, quick=quick))
        assert (fault.kind, fault.shard, fault.key, fault.lost) == (FaultKind.TWICE, SHARD, "b", 0)
        assert fault.reason == f"this key is in {FIRST} too, and so are 1 more of its keys"


def test_a_key_twice_in_one_shard_is_found(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b"), sample("a")]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key) == (FaultKind.TWICE, "a")
    assert "in this shard already" in fault.reason


@pytest.mark.parametrize(
    ("members", "kind", "reason"),
    [
        ({"png": encode(1)}, FaultKind.MEMBERS, "not one image and one annotation"),
        ({"json": ANNOTATION}, FaultKind.MEMBERS, "not one image and one annotation"),
        ({"png": encode(1), "jpg": encode(1, kind="JPEG"), "json": ANNOTATION}, FaultKind.MEMBERS, "not one image"),
        ({"png": encode(1), "json": b"{"}, FaultKind.ANNOTATION, "not JSON"),
        ({"png": encode(1), "json": b'{"caption": {}}'}, FaultKind.ANNOTATION, '"global"'),
        ({"jpg": encode(1), "json": ANNOTATION}, FaultKind.IMAGE, "the image is PNG, but its extension is 'jpg'"),
        ({"gif": encode(1), "json": ANNOTATION}, FaultKind.IMAGE, "its extension 'gif' is not one of"),
        ({"png": encode(1, size=64)[:-3000], "json": ANNOTATION}, FaultKind.IMAGE, "cannot be decoded"),
        ({"png": b"no image", "json": ANNOTATION}, FaultKind.IMAGE, "not a JPEG, PNG or WebP"),
    ],
)
def test_a_sample_that_was_packed_wrong_is_found_though_every_digest_holds(tmp_path, members, kind, reason):
    forge(tmp_path, [[sample("a"), sample("b", members)]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key, fault.lost) == (kind, "b", 1)
    assert reason in fault.reason


def test_a_sample_under_another_key_than_its_members_is_found(tmp_path):
    forge(tmp_path, [[("a", sample("b")[1])]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key) == (FaultKind.MEMBERS, "a")
    assert "have the key 'b'" in fault.reason


def test_bytes_between_two_samples_are_found(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b")]], between=sample("hidden")[1])
    for quick in (True, False):
        fault = only(verify(tmp_path, quick=quick))
        assert (fault.kind, fault.key) == (FaultKind.INDEX, "b")


def test_a_shard_without_its_end_blocks_is_found_though_every_digest_holds(tmp_path):
    forge(tmp_path, [[sample("a")]], end=END[:512])
    assert kinds(verify(tmp_path)) == {FaultKind.INDEX, FaultKind.END}


def test_further_blocks_of_zeros_are_no_damage(tmp_path):
    assert verify(forge(tmp_path, [[sample("a")]], end=END * 10)).whole
