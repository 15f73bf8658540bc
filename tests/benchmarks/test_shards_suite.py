import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness import record, tables
from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import run
from benchmarks.shards import mixing, pictures, scale, stream
from benchmarks.shards.dataset import Datasets, Wanted, commented, prepare
from benchmarks.shards.host import BARE, OURS, Pythons
from benchmarks.shards.place import local
from benchmarks.shards.suite import SUITE
from emocap_pretrain.captions.rendered.dataset import record as face

SAMPLES = 600
TINY = ["--samples", f"{SAMPLES},{SAMPLES}", "--shard-samples", "200", "--distinct", "3", "--rounds", "2"]
OCCASION = Occasion("a CPU", 0.0, "0123", "2026-01-01", "a test")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def alone(work: Path) -> Pythons:
    """Returns the Python environments of the suite, without the one in which other libraries would be installed."""
    return Pythons.of(work / "none", work / "hosts.log")


@pytest.fixture(scope="module")
def datasets(work: Path, alone: Pythons) -> Datasets:
    return prepare(Wanted(images=None, distinct=3, samples=SAMPLES, shard_samples=200, pixels=32), work, alone)


@pytest.fixture(scope="module")
def records(work: Path) -> list[Measurement]:
    """Runs `stream` with one loader process, and returns the records of ours and of libjpeg-turbo alone."""
    words = ["stream", "--only", "file", "--workers", "1", *TINY, "--delivered"]
    assert run(SUITE, [*words, "--peers", str(work / "none"), "--work", str(work), "--out", str(work)]) == 0
    return record.read(work / "stream.jsonl")


def test_a_run_records_ours_and_the_bound(records):
    measured = {(line.contender, line.setting["decode"]): line for line in records}
    assert set(measured) == {(OURS.name, False), (OURS.name, True), (BARE.name, True)}
    bound = measured[BARE.name, True]
    assert bound.value.median > 0
    assert bound.repetitions == 2
    assert bound.ratios["ours over it"].median > 0


def test_tables_and_figures_are_made_from_the_records_alone(records, work, tmp_path, capsys):
    assert run(SUITE, ["table", "--out", str(work)]) == 0
    text = capsys.readouterr().out
    assert "Local folder, shuffle on, batches delivered to the main process" in text
    assert f"| {BARE.name} |" in text
    assert run(SUITE, ["plot", "--out", str(work), "--figures", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size > 10_000


def test_progress_fits_a_terminal(records):
    skipped = replace(records[0], value=None, skipped="x" * 200)
    assert max(len(tables.progress(line)) for line in [*records, skipped]) < 80


def test_the_last_of_equal_measurements_counts(records, tmp_path):
    again = replace(records[-1], date="2026-02-02", ratios=None)
    record.append(tmp_path / "stream.jsonl", [*records, again])
    found = record.read(tmp_path / "stream.jsonl")
    assert [line.key for line in found] == [line.key for line in records]
    assert found[-1] == again


def test_a_pass_that_begins_later_reads_the_rest(datasets, work, alone):
    found, _ = local(datasets, work).read(OURS, alone, samples=SAMPLES, workers=0, position=512)
    assert found.samples == SAMPLES - 512


def test_the_first_batch_is_timed_at_the_beginning_and_far_after_it(datasets, work, alone):
    begin, late = stream.first_batches(datasets, local(datasets, work), alone, 1, OCCASION)
    assert (begin.setting["position"], late.setting["position"]) == (0, 512)
    for line in (begin, late):
        assert 0 < line.value.median < line.more["with_start_and_imports_s"].median
        assert line.versions["torch"]


def test_a_host_that_fails_says_where_to_read_why(work, alone):
    nowhere = Datasets(work / "nowhere", SAMPLES, 0)
    skipped = local(nowhere, work).read(OURS, alone, samples=SAMPLES)
    assert skipped.reason.endswith("hosts.log")
    assert "ManifestError" in alone.log.read_text()


def test_one_shard_is_used_for_many(work, alone):
    one = prepare(Wanted(images=None, distinct=64, samples=64, shard_samples=64, pixels=16), work, alone)
    measured = scale.measure(one, work, alone, OCCASION, shards=(5,), ranks=4, rounds=1)
    lines = {line.what: line for line in measured}
    assert lines[scale.MEMORY].skipped is None
    assert lines[scale.MEMORY].more["rss_with_imports_bytes"].median > lines[scale.MEMORY].value.median
    assert lines[scale.MANIFEST].more["manifest_bytes"] > 0
    assert lines[scale.PLAN].setting["ranks"] == 4


def test_ways_to_decode_are_compared_in_rounds_or_say_why_not(work, alone, monkeypatch):
    lineup = replace(pictures.DECODERS, sizes=(32,))
    more = {"greatest_difference": 3, "mean_difference": 0.5}
    apart = {"pixels": 32, "more": more, "versions": {}}
    answers = [
        {"contender": "Pillow", "seconds": [0.2, 0.6], "skipped": None, **apart},
        {"contender": "simplejpeg", "seconds": [0.1, 0.2], "skipped": None, **apart},
        {"contender": "spdl", "seconds": [], "skipped": "not installed", **apart, "more": None},
    ]
    monkeypatch.setattr(Pythons, "call", lambda *_: json.dumps(answers))
    faces = [face(0, number, pixels=32) for number in range(2)]
    pillow, base, spdl = pictures.measure(lineup, faces, work, alone, 2, OCCASION)
    assert pillow.ratios["over simplejpeg"].median == pytest.approx(2.5)
    assert base.ratios["over simplejpeg"].median == 1
    assert pillow.more == more
    assert (spdl.skipped, spdl.value) == ("not installed", None)
    assert len(list((work / "pictures" / "decoders" / "32").iterdir())) == 2


def test_copies_of_an_image_differ_in_their_bytes_alone():
    image = face(0, 0, pixels=32).image
    copies = [commented(image, f"copy {number}") for number in (1, 2)]
    pixels = [np.asarray(Image.open(io.BytesIO(each))) for each in (image, *copies)]
    assert copies[0] != copies[1]
    assert all(np.array_equal(pixels[0], each) for each in pixels[1:])


def test_a_perfect_shuffle_measures_one_and_no_shuffle_is_far_from_it():
    samples, batch = 1 << 16, 256
    neighbours, *others = mixing.quality(np.random.default_rng(0).permutation(samples), batch)
    assert neighbours == pytest.approx(1, abs=0.25)
    assert others == pytest.approx([1, 1], abs=0.1)
    neighbours, classes, displacement = mixing.quality(np.arange(samples), batch)
    assert neighbours == pytest.approx(samples / batch, rel=0.02)
    assert classes > 100
    assert displacement == 0


def test_a_larger_window_mixes_better():
    sizes = {"samples": 1 << 14, "batch": 256, "shard_samples": (64,), "windows": (256, 4096), "buffers": ()}
    small, large = (line.value.median for line in mixing.measure(OCCASION, 1, **sizes))
    assert small > 10 * large
