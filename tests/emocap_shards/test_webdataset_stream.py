import itertools
import json
import logging
import os
import pickle
import sys
import tarfile
from collections import Counter
from dataclasses import replace

import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError, RecordError, StoreError
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from emocap_shards.tar_samples import TarPlace, TarSamples, list_tars
from emocap_shards.webdataset_stream import WebDatasetStream
from emocap_shards.writer import write_shards
from emocap_shards.writing.sources.columns import TableColumns
from shard_cases import encode, records, tar_of

TARS, EACH = 8, 3
NEEDED = TableColumns(captions="required")


def pair(key, number):
    """Returns the members of a sample as img2dataset writes them. Its number is in the caption."""
    fields = {"caption": f"Face {number}.", "url": "http://e.invalid/0", "status": "success"}
    return [
        (f"{key}.jpg", encode(number, kind="JPEG")),
        (f"{key}.json", json.dumps(fields).encode()),
        (f"{key}.txt", f"Face {number}.".encode()),
    ]


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with 8 tars of 3 samples. The keys begin at 0 in every tar, as those of many programs do."""
    (tmp_path / "tars").mkdir()
    for tar in range(TARS):
        members = itertools.chain.from_iterable(pair(f"{each:09d}", tar * EACH + each) for each in range(EACH))
        tar_of(tmp_path / f"tars/{tar:05d}.tar", members)
    return tmp_path / "tars"


def stream_of(url, **settings):
    options = {"samples": TARS * EACH, "global_batch": 8, "buffer_samples": 4}
    return WebDatasetStream(source=TarSamples(tars=list_tars(str(url)), columns=NEEDED), **{**options, **settings})


def taken(stream, steps, part=0, parts=1):
    return list(itertools.islice(stream.steps(part, parts, each=lambda sample: sample), steps))


def numbers(steps):
    return [int(sample.caption.global_.split()[1][:-1]) for step in steps for sample in step.samples]


def job(stream, epochs=1, *, ranks=2, workers=2):
    """Returns the numbers of the samples that each loader process of each rank reads."""
    steps = -(-stream.samples // stream.global_batch) * epochs
    found = {}
    for rank, part in itertools.product(range(ranks), range(workers)):
        # A loader process gets the stream as a pickle.
        there = pickle.loads(pickle.dumps(replace(stream, rank=rank, world_size=ranks)))
        found[rank, part] = numbers(taken(there, len(range(part, steps, workers)), part, workers))
    return found


def test_the_processes_of_two_ranks_read_disjoint_tars_and_together_all_samples(folder):
    stream = stream_of(folder, global_batch=6, seed=3)
    first = job(stream)
    assert sorted(itertools.chain.from_iterable(first.values())) == list(range(TARS * EACH))
    assert {len(each) for each in first.values()} == {TARS * EACH // 4}
    both = job(stream, epochs=2)
    second = {place: each[len(first[place]) :] for place, each in both.items()}
    assert sorted(itertools.chain.from_iterable(second.values())) == list(range(TARS * EACH))
    assert {place: sorted(each) for place, each in first.items()} != {
        place: sorted(each) for place, each in second.items()
    }
    assert job(stream) == first
    assert job(replace(stream, seed=4)) != first


def test_samples_of_the_same_key_in_two_tars_keep_their_own_index_in_every_epoch_and_order(folder):
    indexes = [
        {sample.caption.global_: sample.index for step in taken(stream, 3) for sample in step.samples}
        for stream in (stream_of(folder), stream_of(folder, start=Cursor(4, 0), seed=9))
    ]
    assert indexes[0] == indexes[1]
    assert len(set(indexes[0].values())) == TARS * EACH
    assert {sample.epoch for sample in taken(stream_of(folder, start=Cursor(4, 0)), 1)[0].samples} == {4}


def test_within_an_epoch_a_run_begins_a_fresh_pass_in_another_order_and_at_its_end_it_continues_exactly(folder):
    whole = taken(stream_of(folder), 9)
    assert [step.cursor for step in whole[:3]] == [Cursor(0, 8), Cursor(0, 16), Cursor(1, 0)]
    resumed = taken(stream_of(folder, start=Cursor(0, 8)), 5)
    assert [step.cursor for step in resumed] == [step.cursor for step in whole[1:6]]
    assert numbers(resumed[:2]) not in (numbers(whole[1:3]), numbers(whole[:2]))
    assert numbers(resumed[2:5]) == numbers(whole[3:6])
    assert numbers(taken(stream_of(folder, start=Cursor(1, 0)), 6)) == numbers(whole[3:9])
    # An epoch of three steps ends between two loader processes.
    in_turn = [taken(stream_of(folder), 5, part, 2)[step] for step, part in itertools.product(range(5), range(2))]
    from_1 = [taken(stream_of(folder, start=Cursor(1, 0)), 3, part, 2)[step] for step in range(3) for part in range(2)]
    assert numbers(from_1) == numbers(in_turn[3:9])


def test_what_cannot_be_used_is_left_out_counted_and_named(folder, caplog):
    tar_of(
        folder / "00000.tar",
        [
            *pair("good", 0),
            ("broken.jpg", encode(1, kind="JPEG")[:200]),
            ("broken.txt", b"x"),
            ("silent.jpg", encode(2)),
            ("page.jpg", b"<!doctype html>"),
            ("page.txt", b"x"),
            ("text.txt", b"no image"),
            *((f"huge.{kind}", bytes(3000)) for kind in ("jpg", "txt")),
            *pair("last", 2),
        ],
    )
    with tarfile.open(folder / "00001.tar") as tar:
        last = tar.getmembers()[-3]
    os.truncate(folder / "00001.tar", last.offset_data + 10)
    (folder / "00002.tar").unlink()
    stream = stream_of(folder.parent / "tars/{00000..00007}.tar")
    source = replace(stream.source, most_bytes=2500)
    with caplog.at_level(logging.WARNING):
        steps = taken(replace(stream, source=source, samples=19, global_batch=19), 1)
    assert Counter(numbers(steps)) == Counter([0, 2, 3, 4, *range(9, 24)])
    reasons = {(each.shard.rsplit("/")[-1], each.key): each.reason for each in steps[0].damaged}
    assert set(reasons) == {
        *(("00000.tar", key) for key in ("broken", "silent", "page", "text", "huge.jpg", "huge.txt")),
        ("00001.tar", ""),
        ("00002.tar", ""),
    }
    assert "cannot be decoded" in reasons["00000.tar", "broken"]
    assert "there is no column 'global'" in reasons["00000.tar", "silent"]
    assert "a web page" in reasons["00000.tar", "page"]
    assert "it has no image" in reasons["00000.tar", "text"]
    assert "it has 3000 bytes; the limit is 2500" in reasons["00000.tar", "huge.jpg"]
    assert "the samples that follow are lost" in reasons["00001.tar", ""]
    assert len([line for line in caplog.messages if line.startswith("skipped (")]) == len(reasons)


def test_a_process_that_can_use_nearly_nothing_ends(tmp_path):
    tar_of(tmp_path / "a.tar", [(f"{number}.txt", b"no image") for number in range(1200)])
    with pytest.raises(
        RecordError, match=r"1,000 of the 1,000 samples that were read cannot be used, the last one is .*999"
    ):
        taken(stream_of(tmp_path), 1)
    tar_of(tmp_path / "a.tar", [(f"{number}.txt", b"no image") for number in range(3)])
    with pytest.raises(RecordError, match="no sample can be used in the tars of loader process 0 of rank 0"):
        taken(stream_of(tmp_path), 1)


def test_a_tar_with_fewer_samples_than_stated_is_read_again_in_another_order(folder):
    read = numbers(taken(stream_of(folder, samples=48, global_batch=24), 2))
    assert sorted(read[:24]) == sorted(read[24:]) == list(range(24))
    assert read[:24] != read[24:]


def test_there_must_be_a_tar_for_every_process(folder):
    with pytest.raises(PlanError, match="8 tars are too few for 3 ranks with 3 loader processes each"):
        taken(stream_of(folder, world_size=3), 1, 0, 3)


def test_an_unreachable_store_ends_the_run_and_is_not_a_skipped_sample(folder, monkeypatch):
    def fail(*_):
        raise StoreError("gone")

    stream = stream_of(folder)
    monkeypatch.setattr(type(open_store(folder)), "read_range", fail)
    with pytest.raises(StoreError, match="gone"):
        taken(stream, 1)


@pytest.mark.parametrize(
    "url", ["pipe:touch {mark} #.tar", "{{a,pipe:touch {mark} #}}.tar", "pipe:touch {mark} # s3://b/x.tar"]
)
def test_a_command_in_a_url_is_refused_and_never_executed(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tar").touch()
    url = url.format(mark="mark")
    with pytest.raises((RecordError, StoreError), match="pipe"):
        list_tars(url)
    # A list that was made without the check reads a file of this name, and executes nothing either.
    source = TarSamples(tars=(TarPlace(".", url.replace("/", "")),))
    with pytest.raises(RecordError, match="no sample can be used"):
        taken(WebDatasetStream(source=source, samples=1, global_batch=1), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_library_opens_nothing_itself(folder, monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", "/=pipe:false /")
    monkeypatch.setenv("WDS_CACHE", str(folder))
    monkeypatch.setattr(sys.modules["webdataset.gopen"], "gopen", None)
    assert sorted(numbers(taken(stream_of(folder), 3))) == list(range(24))


def test_tars_at_a_url_are_read_by_pattern_and_as_a_folder(folder):
    far = "memory://foreign-tars"
    for path in sorted(folder.iterdir()):
        open_store(far).put_file(f"deep/{path.name}", path)
    near = stream_of(folder)
    for url in (f"{far}/deep", f"{far}/deep/*.tar", f"{far}/d{{eep/0000[0-3],eep/0000[4-7]}}.tar"):
        there = stream_of(url)
        assert there.source.digest == near.source.digest
        assert numbers(taken(there, 3)) == numbers(taken(near, 3))


def test_what_is_not_a_list_of_tars_is_refused(tmp_path, folder):
    write_shards(records(2), tmp_path / "packed")
    for name in ("kinds/a.tar", "kinds/a.tar.gz", "none/a.zip", "one/a.tar.gz", "one/a_stats.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [place.path for place in list_tars(str(tmp_path / "one"))] == ["a.tar.gz"]
    for url, why in {
        tmp_path / "packed": "is a packed dataset; give it as data.url",
        tmp_path / "nowhere": "matches no file",
        tmp_path / "none": "holds no tar; name the tars",
        tmp_path / "kinds": r"holds tars of several kinds \(\.tar, \.tar\.gz\); name the tars",
        folder / "0000{0,0}.tar": "names 00000.tar twice",
        folder / "{0..3.tar": "close each brace",
    }.items():
        with pytest.raises(RecordError, match=why):
            list_tars(str(url))


def test_captions_are_read_in_the_order_of_the_tars_and_changed_before_they_are_used(folder):
    source = TarSamples(
        tars=list_tars(str(folder)), columns=NEEDED, change=lambda found: Caption("x", (found.global_,), "")
    )
    assert [each[0].local[0] for each in source.captions()] == [f"Face {number}." for number in range(24)]
    assert source.usable(5) == (5, ())
