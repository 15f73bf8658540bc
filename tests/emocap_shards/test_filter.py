"""Tests filter files, and that a filtered stream has the samples of a dataset that was packed with the filter."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.annotation import used_captions
from emocap_shards.cursor import Cursor
from emocap_shards.dataset_filter import DatasetFilter, open_filter
from emocap_shards.errors import FilterError, PlanError
from emocap_shards.filter_file import Exclusion, FilterFile, FilterOrigin, read_filter, write_filter
from emocap_shards.inspecting.label_values import label_column, label_values
from emocap_shards.library import MixtureDataset
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import used_annotation
from emocap_shards.sample import EVERY_LOCAL, SUMMARY, WHOLE_CAPTION, Caption, UnusedText
from emocap_shards.strata import ClassBalance
from emocap_shards.stream import RankStep, Stream
from emocap_shards.writer import write_shards
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.packing import pack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_cases import records

SAMPLES = 30
CHECK, PERSON = FilterOrigin("agreement", "emocap check", below=0.5), FilterOrigin("not a face", "anna")
SECOND = Caption("Glad again.", ("Brows up.", "Lips apart."), "Glad, with raised brows.")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Packs 30 samples in shards of four. Every fifth sample has a second caption."""
    folder: Path = tmp_path_factory.mktemp("filtered") / "packed"
    rows = [
        dataclasses.replace(each, further=(SECOND,)) if number % 5 == 0 else each
        for number, each in enumerate(records(SAMPLES))
    ]
    write_shards(rows, folder, samples_per_shard=4)
    return str(folder)


def key(number: int) -> str:
    return f"face-{number:04d}"


def captions_of(number: int) -> int:
    return 2 if number % 5 == 0 else 1


def file_for(dataset: str, exclusions: list[Exclusion]) -> FilterFile:
    return FilterFile.of(read_manifest(dataset).digest, [CHECK, PERSON], exclusions)


def filter_for(dataset: str, place: Path, exclusions: list[Exclusion]) -> DatasetFilter:
    write_filter(str(place), file_for(dataset, exclusions))
    return open_filter(str(place), dataset)


@st.composite
def exclusions(draw) -> list[Exclusion]:
    """Draws exclusions that fit the dataset and leave at least sample 29."""
    found: list[Exclusion] = []
    for number in draw(st.sets(st.integers(0, SAMPLES - 2), max_size=SAMPLES - 1)):
        part = draw(st.sampled_from(["sample", "sample", "caption", "global", "summary", "local"]))
        caption = draw(st.integers(0, captions_of(number) - 1))
        sentences = 2 if caption else number % 3
        sentence = draw(st.sampled_from([None, *range(sentences)])) if part == "local" else None
        place = {} if part == "sample" else {"caption": caption, "captions": captions_of(number)}
        found.append(Exclusion(key(number), draw(st.integers(0, 1)), part, **place, sentence=sentence, reason="why"))
    return found


def taken(stream: Stream, count: int, **changes) -> list[RankStep]:
    return list(itertools.islice(dataclasses.replace(stream, **changes).encoded_steps(), count))


def keys(steps: list[RankStep]) -> list[list[str]]:
    return [[sample.key for sample in step.samples] for step in steps]


def captions(steps: list[RankStep]) -> dict[str, tuple[Caption, ...]]:
    return {sample.key: used_annotation(sample)[0] for step in steps for sample in step.samples}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(exclusions(), st.integers(1, 3), st.integers(0, 2**31 - 1), st.booleans())
def test_a_filtered_stream_is_that_of_the_dataset_packed_with_the_filter_at_every_position(
    dataset, tmp_path_factory, chosen, world_size, seed, balanced
):
    folder = tmp_path_factory.mktemp("case")
    found = filter_for(dataset, folder / "filter.jsonl", chosen)
    source = dataclasses.replace(DatasetSource.open([dataset]), filters=(found,))
    pack(source, str(folder / "packed"))
    packed = Stream(url=str(folder / "packed"), global_batch=7, epochs=3)
    balance = ClassBalance((np.arange(SAMPLES, dtype=np.uint8)[found.used_ids()] % 2,), 0.5) if balanced else None
    filtered = dataclasses.replace(
        packed, url=(MixtureDataset(dataset, filter=found),), seed=seed, window_samples=9, balance=balance
    )
    whole, wanted = taken(filtered, 99), taken(packed, 99)
    assert captions(whole).items() <= captions(wanted).items()
    if not balanced:
        assert captions(whole) == captions(wanted)
        for epoch in range(3):
            steps = range(epoch * len(whole) // 3, (epoch + 1) * len(whole) // 3)
            of_epoch = [
                Counter(itertools.chain.from_iterable(keys(each)[at] for at in steps)) for each in (whole, wanted)
            ]
            assert of_epoch[0] == of_epoch[1]
            assert set(of_epoch[0].values()) == {1}
            assert whole[steps[-1]].cursor == wanted[steps[-1]].cursor == Cursor(epoch + 1, 0)
    # At every position, any number of ranks continues with the same rows.
    for done, step in enumerate(whole[:-1], 1):
        ranks = [taken(filtered, 99, start=step.cursor, rank=rank, world_size=world_size) for rank in range(world_size)]
        joined = [list(itertools.chain.from_iterable(each)) for each in zip(*map(keys, ranks), strict=True)]
        assert joined == keys(whole[done:])


def test_a_filtered_dataset_keeps_its_share_of_a_mixture_and_its_own_epochs(dataset, tmp_path):
    gone = [Exclusion(key(number), 0) for number in range(SAMPLES) if number % 3]
    found = filter_for(dataset, tmp_path / "filter.jsonl", gone)
    mix = (MixtureDataset(dataset, filter=found), MixtureDataset(dataset))
    stream = Stream(url=mix, global_batch=8, seed=1)
    drawn = Counter(sample.index for step in taken(stream, 20) for sample in step.samples)
    assert {index for index in drawn if index < SAMPLES} == set(range(0, SAMPLES, 3))
    # Without weights, the shares are the numbers of samples that are used: 10 and 30 of 40.
    assert sum(drawn[index] for index in range(SAMPLES)) == pytest.approx(40, abs=1)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_labels_of_samples_that_are_left_out_are_not_counted(dataset, tmp_path):
    found = filter_for(dataset, tmp_path / "filter.jsonl", [Exclusion(key(n), 0) for n in range(1, SAMPLES, 2)])
    assert label_values(dataset, "emotion", filter_=found).values == {"joy": 15}
    assert label_values(dataset, "emotion", filter_=found).complete
    column = label_column(dataset, "valence", most_values=99, filter_=found)
    assert column is not None
    assert [column.values[code] for code in column.codes] == [number / 10 for number in range(0, SAMPLES, 2)]


def test_the_texts_of_a_sample_are_left_out_by_part_and_a_caption_needs_its_global_sentence():
    one, two = Caption("A.", ("b", "c", "d"), "E."), SECOND
    assert used_captions((one, two), [UnusedText(0, 1), UnusedText(1, SUMMARY)]) == (
        Caption("A.", ("b", "d"), "E."),
        dataclasses.replace(SECOND, summary=""),
    )
    assert used_captions((one, two), [UnusedText(0, WHOLE_CAPTION)]) == (two,)
    assert used_captions((one,), [UnusedText(0, EVERY_LOCAL)]) == (Caption("A.", (), "E."),)
    for wrong in ([UnusedText(2, SUMMARY)], [UnusedText(0, 3)], [UnusedText(0, WHOLE_CAPTION)]):
        with pytest.raises(FilterError):
            used_captions((one,), wrong)


def test_a_sample_is_left_out_once_none_of_its_captions_is_used(dataset, tmp_path):
    first = Exclusion(key(5), 0, "global", caption=0, captions=2)
    second = Exclusion(key(5), 1, "caption", caption=1, captions=2)
    assert filter_for(dataset, tmp_path / "a", [first]).left_out.tolist() == []
    merged = FilterFile.merged([file_for(dataset, [first]), file_for(dataset, [second])])
    write_filter(str(tmp_path / "b"), merged)
    found = open_filter(str(tmp_path / "b"), dataset)
    assert (found.left_out.tolist(), found.without_caption) == ([5], 1)
    assert found.describe() == "1 of 30 samples (1 of them without a caption that is left)"


@settings(max_examples=30, deadline=None)
@given(exclusions(), exclusions(), st.randoms())
def test_the_bytes_depend_on_the_exclusions_alone_and_a_merge_is_their_union(one, two, random):
    first, second = (FilterFile.of("0" * 64, [CHECK, PERSON], each) for each in (one, two))
    both = FilterFile.merged([first, second])
    assert both == FilterFile.merged([second, first, first])
    assert set(both.exclusions) == set(first.exclusions) | set(second.exclusions)
    mixed = random.sample(one + two, len(one + two))
    assert FilterFile.of("0" * 64, [CHECK, PERSON], mixed).dump() == both.dump()
    assert FilterFile.load(both.dump(), where="x") == both
    assert FilterFile.load(both.dump(), where="x").digest == both.digest


def test_a_merge_renumbers_origins_and_refuses_other_datasets_and_contradictions():
    one = FilterFile.of("0" * 64, [CHECK], [Exclusion("a", 0)])
    two = FilterFile.of("0" * 64, [PERSON, FilterOrigin("agreement", "emocap check", below=0.25)], [Exclusion("a", 0)])
    both = FilterFile.merged([two, one])
    assert [both.origins[each.origin] for each in both.exclusions] == [CHECK, PERSON]
    assert [origin.below for origin in both.origins] == [0.25, 0.5, None]
    with pytest.raises(FilterError, match="different datasets"):
        FilterFile.merged([one, FilterFile.of("1" * 64, [], [])])
    with pytest.raises(FilterError, match="no filter file"):
        FilterFile.merged([])
    parts = [Exclusion("a", 0, "caption", caption=0, captions=count) for count in (1, 2)]
    with pytest.raises(FilterError, match="'a' has 2 captions here and 1 in another line"):
        FilterFile.of("0" * 64, [CHECK], parts)


def test_every_changed_bit_and_every_cut_is_refused():
    data = FilterFile.of("0" * 64, [CHECK], [Exclusion("a", 0), Exclusion("b", 0, "local", sentence=1)]).dump()
    FilterFile.load(data, where="x")
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(FilterError, match="write the filter again"):
            FilterFile.load(bytes(changed), where="x")
    for end in range(len(data)):
        with pytest.raises(FilterError):
            FilterFile.load(data[:end], where="x")


def forged(*lines: object, head: dict[str, object] | None = None) -> bytes:
    """Returns a file with a right checksum and any lines."""
    import hashlib

    first = {"filter": 1, "dataset": "0" * 64, "origins": [{"name": "n", "made_by": "m"}], **(head or {})}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (first, *lines))
    return body + b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        forged(head={"filter": 2}),
        forged(head={"dataset": "0" * 63}),
        forged(head={"origins": {}}),
        forged(head={"origins": [{"name": "n", "made_by": "m", "below": "0.5"}]}),
        forged(head={"origins": [{"name": "b", "made_by": "m"}, {"name": "a", "made_by": "m"}]}),
        forged([]),
        forged({"key": 3, "origin": 0}),
        forged({"key": "a", "origin": 1}),
        forged({"key": "a", "origin": True}),
        forged({"key": "a", "origin": 0, "part": "labels"}),
        forged({"key": "a", "origin": 0, "caption": 0}),
        forged({"key": "a", "origin": 0, "url": "http://x"}),
        forged({"key": "a", "origin": 0, "reason": "x" * 1001}),
        forged({"key": "a", "origin": 0, "part": "summary", "caption": 1, "captions": 1}),
        forged({"key": "a", "origin": 0, "part": "summary", "sentence": 0}),
        forged({"key": "a", "origin": 0, "part": "local", "sentence": 1 << 15}),
        forged({"key": "a", "origin": 0, "part": "local", "captions": 1 << 16}),
        forged({"key": "b", "origin": 0}, {"key": "a", "origin": 0}),
        forged({"key": "a", "origin": 0}, {"key": "a", "origin": 0}),
        forged({"key": "x" * 20_000, "origin": 0}),
    ],
)
def test_a_forged_file_is_refused_in_one_line(data):
    with pytest.raises(FilterError) as caught:
        FilterFile.load(data, where="f.jsonl")
    assert str(caught.value).startswith("f.jsonl")
    assert "\n" not in str(caught.value)


def test_a_filter_of_another_dataset_or_with_unknown_keys_or_of_everything_is_refused(dataset, tmp_path):
    place = str(tmp_path / "filter.jsonl")
    write_filter(place, FilterFile.of("0" * 64, [CHECK], [Exclusion(key(1), 0)]))
    with pytest.raises(FilterError, match=r"filter of another dataset: it was made for the digest 0000000000000000"):
        open_filter(place, dataset)
    write_filter(place, file_for(dataset, [Exclusion("x1", 0), Exclusion(key(1), 0), Exclusion("x2", 0)]))
    with pytest.raises(FilterError, match=r"names 2 keys that .* does not have: 'x1', 'x2'"):
        open_filter(place, dataset)
    write_filter(place, file_for(dataset, [Exclusion(key(number), 0) for number in range(SAMPLES)]))
    with pytest.raises(FilterError, match="leaves out all 30 samples"):
        open_filter(place, dataset)
    with pytest.raises(FilterError, match="no such filter file"):
        read_filter(str(tmp_path / "absent.jsonl"))
    with pytest.raises(FilterError, match="is not a file"):
        read_filter("s3://bucket")


def test_a_filter_that_names_texts_which_a_sample_lacks_ends_the_stream_and_names_the_sample(dataset, tmp_path):
    found = filter_for(dataset, tmp_path / "f", [Exclusion(key(1), 0, "local", sentence=7)])
    stream = Stream(url=(MixtureDataset(dataset, filter=found),), global_batch=30, error_budget=5)
    with pytest.raises(FilterError, match=r"does not fit sample 'face-0001' of shard .*: its caption has 1 local"):
        next(stream.steps())
    other = dataclasses.replace(found, samples=7)
    with pytest.raises(PlanError, match="another number of samples"):
        next(dataclasses.replace(stream, url=(MixtureDataset(dataset, filter=other),)).steps())
