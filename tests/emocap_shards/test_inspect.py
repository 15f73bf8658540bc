"""Tests that counts are right and that memory is bounded, for any content of a dataset."""

import json
import random
import sys
from collections import Counter

import numpy as np
import pytest
from emocap_shards.annotation import dump_annotation
from emocap_shards.errors import ManifestError
from emocap_shards.inspecting import faces as faces_module
from emocap_shards.inspecting import look as look_module
from emocap_shards.inspecting.annotations import MOST_NAMES, LabelCounter, words
from emocap_shards.inspecting.counters import Counts, NumberCounter, TextCounter, spread_of
from emocap_shards.inspecting.look import evenly, everything
from emocap_shards.inspecting.plots import ceiling, histogram
from emocap_shards.inspecting.summary import summarise
from emocap_shards.inspecting.wording import share_once, share_repeated
from emocap_shards.manifest import Manifest, Shard, read_manifest
from emocap_shards.sample import Caption
from emocap_shards.writer import write_shards
from forged import ANNOTATION, forge, sample
from hypothesis import example, given
from hypothesis import strategies as st
from shard_cases import encode, records


@pytest.fixture
def folder(tmp_path):
    write_shards(records(10), tmp_path, samples_per_shard=4)
    return tmp_path


def annotated(key, captions, **labels):
    annotation = dump_annotation(captions[0], labels, captions[1:])
    return sample(key, {"png": encode(hash(key) % 100), "json": annotation})


def test_a_summary_counts_what_was_written(folder):
    summary = summarise(folder)
    assert (summary.stock.samples, summary.stock.shards) == (10, 3)
    assert summary.stock.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert summary.stock.digest == read_manifest(folder).digest
    assert (summary.stock.samples_per_shard.least, summary.stock.samples_per_shard.most) == (2, 4)
    assert (summary.looked.samples, summary.looked.damaged, summary.looked.out_of_time) == (10, 0, False)
    assert summary.text_labels == {"emotion": Counts(10, 2, 0, 0, (("fear", 5), ("joy", 5)))}
    assert summary.number_labels["valence"].mean == pytest.approx(0.45)
    assert (summary.number_labels["valence"].least, summary.number_labels["valence"].most) == (0.0, 0.9)
    assert (summary.sentences.count, summary.sentences.mean, summary.sentences.most) == (10, 0.9, 2)
    assert summary.captions_per_image.most == 1
    assert summary.images.formats.top == (("PNG", 10),)
    assert summary.images.sizes.top == (("8 x 8", 10),)
    assert len(summary.faces) == 10


def test_parts_are_counted_apart(folder):
    parts = summarise(folder).parts
    assert {name: part.without for name, part in parts.items()} == {"global": 0, "local": 4, "summary": 0}
    assert {name: part.words.mean for name, part in parts.items()} == {"global": 4, "local": 2, "summary": 3}
    assert parts["local"].texts.top == (("Eyes wide.", 6), ("Mouth open.", 3))
    assert dict(parts["local"].vocabulary.top) == {"eyes": 6, "wide": 6, "mouth": 3, "open": 3}
    assert (parts["global"].texts.distinct, parts["global"].vocabulary.distinct) == (10, 3 + 10)
    assert parts["global"].vocabulary.once == 10


def test_several_captions_and_repeated_ones_are_counted(tmp_path):
    one, other = Caption("A glad face.", (), "Glad."), Caption("Joy.", ("Lips curve.",), "")
    forge(tmp_path, [[annotated("a", [one, other]), annotated("b", [one]), annotated("c", [other, other])]])
    summary = summarise(tmp_path)
    assert (summary.captions_per_image.count, summary.captions_per_image.mean) == (3, pytest.approx(5 / 3))
    assert (summary.captions.total, summary.captions.distinct) == (5, 2)
    assert summary.parts["summary"].without == 1
    assert summary.parts["local"].without == 1
    assert summary.parts["local"].texts.total == 3


def test_a_summary_looks_at_no_more_samples_than_it_may(folder):
    summary = summarise(folder, look_at=4)
    assert (summary.stock.samples, summary.looked.asked, summary.looked.samples) == (10, 4, 4)
    assert summary.text_labels["emotion"].total == 4
    none = summarise(folder, look_at=0)
    assert none.looked.samples == none.parts["global"].words.count == none.images.bytes.count == 0
    assert len(summarise(folder, faces=3).faces) == 3


def test_a_summary_ends_when_the_time_is_up_and_says_so(folder):
    summary = summarise(folder, seconds=0)
    assert 0 < summary.looked.samples <= 4
    assert summary.looked.out_of_time
    assert summarise(folder, look_at=None, seconds=None).looked.samples == 10


def test_a_summary_that_reads_some_of_the_shards_does_not_say_that_the_time_is_up(folder, monkeypatch):
    monkeypatch.setattr(look_module, "_SHARDS_AT_MOST", 2)
    looked = summarise(folder, look_at=10).looked
    assert (looked.asked, looked.samples, looked.out_of_time) == (8, 8, False)
    assert summarise(folder, look_at=10, seconds=0).looked.out_of_time


def test_progress_tells_of_every_sample(folder):
    told = []
    summarise(folder, on_progress=lambda seen, of: told.append((seen, of)))
    assert told[-1] == (10, 10)
    assert told == sorted(told)


def test_a_summary_counts_damage_and_continues(folder):
    shard = folder / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    summary = summarise(folder)
    assert (summary.looked.samples, summary.looked.damaged) == (10, 1)
    (reason,) = summary.looked.reasons
    assert reason.startswith("sample 'face-0009' of shard shard-000002.tar: ")
    assert reason.endswith("; run `emocap verify`.")
    assert "budget" not in reason
    assert summary.text_labels["emotion"].total == 9


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.npy"])
def test_a_shard_that_is_not_there_is_counted_and_named(folder, name):
    (folder / name).unlink()
    summary = summarise(folder)
    assert (summary.looked.samples, summary.looked.damaged) == (10, 4)
    assert "shard-000001" in summary.looked.reasons[0]
    assert summary.parts["global"].texts.total == 6


def test_an_image_that_cannot_be_decoded_for_the_sheet_is_damage(tmp_path):
    broken = sample("b", {"png": encode(1, size=64)[:-3000], "json": ANNOTATION})
    forge(tmp_path, [[sample("a"), broken]])
    assert summarise(tmp_path).looked.reasons == (
        "sample 'b' of shard shard-000000.tar: the image cannot be decoded; run `emocap verify`.",
    )


def test_a_folder_without_a_manifest_is_not_a_dataset(tmp_path):
    with pytest.raises(ManifestError, match="make one with `emocap pack`"):
        summarise(tmp_path)


def test_a_summary_as_json_is_plain_and_without_faces(folder):
    values = json.loads(json.dumps(summarise(folder).to_json()))
    assert "faces" not in values
    assert values["stock"]["samples"] == 10
    assert values["parts"]["local"]["without"] == 4


def test_faces_are_small_however_large_the_images(tmp_path):
    large = sample("a", {"png": encode(1, size=700), "json": ANNOTATION})
    forge(tmp_path, [[large]])
    (face,) = summarise(tmp_path).faces
    assert len(face.jpeg) < 20_000
    assert face.jpeg.startswith(b"\xff\xd8")
    assert faces_module.MOST_PX == 160


def manifest(counts):
    digest = "0" * 64
    rows = [Shard(f"shard-{n}.tar", count, count * 2048, digest, f"{n}.npy", digest) for n, count in enumerate(counts)]
    return Manifest(tuple(rows))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(0, 300))
def test_samples_are_picked_at_even_distances(counts, look_at):
    total, picks = sum(counts), evenly(manifest(counts), look_at)
    ids = np.sort(np.concatenate([np.zeros(0, np.int64), *picks]))
    wanted = min(look_at, total)
    assert ids.tolist() == [turn * total // wanted for turn in range(wanted)]
    ends = np.cumsum(counts)
    assert all(len(set(np.searchsorted(ends, pick, side="right").tolist())) == 1 for pick in picks)


def test_of_many_shards_few_are_touched_and_they_are_spread():
    picks = evenly(manifest([10] * 3000), 1000)
    shards = {int(pick[0]) // 10 for pick in picks}
    assert len(shards) == look_module._SHARDS_AT_MOST
    assert max(shards) > 2900
    assert sum(map(len, picks)) == 1000
    half = {int(pick[0]) // 10 for pick in picks[: len(picks) // 2]}
    assert min(half) < 300
    assert max(half) > 2700


def test_everything_is_every_sample_in_order_and_in_portions(monkeypatch):
    monkeypatch.setattr(look_module, "_ROWS_TOGETHER", 3)
    picks = list(everything(manifest([4, 1, 7])))
    assert np.concatenate(picks).tolist() == list(range(12))
    assert [len(pick) for pick in picks] == [3, 1, 1, 3, 3, 1]


def test_large_samples_are_read_in_small_portions(monkeypatch):
    monkeypatch.setattr(look_module, "_BYTES_TOGETHER", 2048 * 2)
    assert {len(pick) for pick in everything(manifest([5]))} == {2, 1}


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_a_tally_with_room_is_exact(items):
    tally = TextCounter(8)
    tally.add(items)
    counts, true = tally.counts(8), Counter(items)
    assert dict(counts.top) == true
    assert (counts.total, counts.distinct, counts.short) == (len(items), len(true), 0)
    assert counts.once == sum(1 for count in true.values() if count == 1)


@given(st.lists(st.integers(0, 40), max_size=400), st.integers(2, 12))
def test_a_tally_without_room_is_short_by_no_more_than_it_says(numbers, cap):
    tally = TextCounter(cap)
    tally.add(map(str, numbers))
    counts, true = tally.counts(cap), Counter(map(str, numbers))
    assert min(len(true), cap) <= counts.distinct <= len(true)
    assert all(count <= true[item] <= count + counts.short for item, count in counts.top)
    assert all(true[item] <= counts.short for item in true.keys() - dict(counts.top).keys())


def test_what_a_tally_forgot_repeats_nothing():
    tally = TextCounter(1000)
    tally.add(map(str, range(1200)))
    counts = tally.counts(3)
    assert counts.short > 0
    assert (counts.distinct, counts.repeats) == (1001, 199)
    assert (share_repeated(counts), share_once(counts)) == ("≤ 16.6 %", "-")


@pytest.mark.parametrize(
    ("counts", "repeated", "once"),
    [
        (Counts(10, 8, 6, 0, ()), "20 %", "75 %"),
        (Counts(10_000, 9_999, 9_998, 1, ()), "< 0.1 %", "-"),
        (Counts(10_000, 1, 0, 1, ()), "≤ 100 %", "-"),
        (Counts(0, 0, 0, 0, ()), "-", "-"),
    ],
)
def test_shares_are_bounds_where_items_were_forgotten(counts, repeated, once):
    assert (share_repeated(counts), share_once(counts)) == (repeated, once)


@given(
    st.lists(st.one_of(st.integers(-50, 50).map(float), st.floats(allow_nan=False, allow_infinity=False)), max_size=50)
)
@example([sys.float_info.max, -sys.float_info.max])
def test_a_spread_puts_each_number_into_one_bin(numbers):
    spread = spread_of(numbers)
    assert spread.count == len(numbers)
    assert list(spread.edges) == sorted(set(spread.edges))
    assert len(spread.edges) == len(spread.bins) + 1
    if numbers:
        assert sum(spread.bins) == len(numbers)
        assert (spread.least, spread.most) == (min(numbers), max(numbers))
        assert histogram("x", spread).bars


def test_few_whole_numbers_have_a_bin_each():
    spread = spread_of([3, 3, 5])
    assert spread.bins == (2, 0, 1)
    assert [bar.tip for bar in histogram("x", spread).bars] == ["3: 2", "4: 0", "5: 1"]


def test_a_long_stream_of_numbers_is_kept_in_part_and_evenly():
    generator = random.Random(1)
    numbers = NumberCounter()
    numbers.add(generator.random() for _ in range(60_000))
    spread = numbers.spread()
    assert (spread.count, sum(spread.bins)) == (60_000, 20_000)
    assert spread.mean == pytest.approx(0.5, abs=0.01)
    assert spread.median == pytest.approx(0.5, abs=0.02)


def test_names_of_labels_are_bounded_and_in_natural_order():
    counter = LabelCounter()
    for _ in range(2):
        counter.add({f"AU{number}": 1.0 for number in range(MOST_NAMES + 5)})
    counter.add({"emotion": "joy", "AU1": "text"})
    assert list(counter.numbers())[:4] == ["AU0", "AU1", "AU2", "AU3"]
    assert len(counter.numbers()) == MOST_NAMES
    assert counter.values_left_out == 2 * 5
    assert counter.texts()["AU1"].top == (("text", 1),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The brows are drawn, moderate (AU4).", ["the", "brows", "are", "drawn", "moderate", "au4"]),
        ("don't half-open, l\u2019air", ["don't", "half-open", "l\u2019air"]),
        ("Größe naïve", ["größe", "naïve"]),
        (" - ", []),
        ("a" * 100, ["a" * 64]),
    ],
)
def test_words_are_letters_and_digits(text, expected):
    assert words(text) == expected


def test_a_bar_far_above_the_others_is_cut():
    assert ceiling([1000, 10, 5]) == 12.5
    assert ceiling([30, 10]) == 30
    assert ceiling([7]) == 7
    assert ceiling([0]) == 1
    plot = histogram("x", spread_of([0] * 1000 + [1] * 10))
    assert [bar.is_cut for bar in plot.bars] == [True, False]
    assert plot.peak == "0: 99 %"
