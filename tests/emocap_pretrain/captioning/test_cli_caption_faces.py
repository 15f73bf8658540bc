"""Tests `emocap caption faces` as a user calls it, with a server in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from captioning_cases import image
from cli_calls import called
from emocap_shards.annotation import load_annotation
from emocap_shards.library import Library
from emocap_shards.sample import Caption, Encoded, Record
from emocap_shards.writer import write_shards

from emocap_pretrain.captioning.journal import open_journal

SERVER = Path(__file__).parents[2] / "caption_server.py"


@contextmanager
def served(log: Path) -> Iterator[str]:
    """Serves in another process, and yields the URL."""
    command = [sys.executable, str(SERVER), str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def _asked(log: Path) -> list[str]:
    return [json.loads(line)["id"] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_folder_of_faces_becomes_a_dataset(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    for number in range(6):
        (photos / "a" / f"{number}.png").write_bytes(image(number))
    (photos / "a" / "broken.jpg").write_bytes(b"no image")
    with served(tmp_path / "log") as url:
        prices = ("--price-prompt", 1, "--price-completion", 2)
        done = called("caption", "faces", photos, tmp_path / "out", "--endpoint", url, "--model", "m", *prices)
        assert done.exit_code == 0, done.stderr
        again = called("caption", "faces", photos, tmp_path / "out", "--endpoint", url, "--model", "m", *prices)
        assert "0 of them from this start" in again.stdout
        assert len(_asked(tmp_path / "log")) == 6
        words = ("caption", "faces", photos, tmp_path / "cheap", "--endpoint", url, "--model", "m", *prices)
        cheap = called(*words, "--most-cost", 0.001)
        assert cheap.exit_code == 75
        assert "stopped at --most-cost 0.001: the same command with more resumes." in cheap.stdout
    assert f"images go to {url}/chat/completions (model m), without labels." in done.stdout
    assert "6 faces with captions, 6 of them from this start" in done.stdout
    assert "left out (left_out.jsonl): 1 x the row cannot be read" in done.stdout
    assert "cost 0.0066." in done.stdout
    (left,) = map(json.loads, (tmp_path / "out/left_out.jsonl").read_text().splitlines())
    assert (left["key"], left["reason"]) == ("a_broken", "unreadable_row")
    root = str(photos.resolve())
    assert f"--image-root {root}" in done.stdout
    packed = called("pack", tmp_path / "out/captions.parquet", tmp_path / "data", "--image-root", root)
    assert packed.exit_code == 0, packed.stderr
    samples = Library.open(str(tmp_path / "data")).fetch(np.arange(6))
    assert [each.key for each in samples if isinstance(each, Encoded)] == [f"a_{number}" for number in range(6)]
    (caption,), _ = load_annotation(samples[0].annotation)
    assert (len(caption.local), caption.global_) == (2, "The person looks clearly afraid.")


def test_the_samples_of_a_packed_dataset_keep_their_keys_and_labels(tmp_path: Path) -> None:
    old = Caption("An old caption.", (), "")
    records = [
        Record(f"sample-{number}", image(number), "png", old, {"emotion": "fear", "AU4": number + 0.5, "person": "p"})
        for number in range(4)
    ]
    write_shards(records, tmp_path / "data")
    with served(tmp_path / "log") as url:
        words = ("caption", "faces", tmp_path / "data", tmp_path / "out", "--endpoint", url, "--model", "m")
        done = called(*words, "--fact", "emotion", "--fact", "AU*", "--no-stream")
        assert done.exit_code == 0, done.stderr
        refused = called(*words, "--fact", "person")
        assert refused.exit_code == 2
        assert "identifies a person or a group" in refused.stderr
    packed = called("pack", tmp_path / "out/captions.parquet", tmp_path / "new")
    assert packed.exit_code == 0, packed.stderr
    for number, sample in enumerate(Library.open(str(tmp_path / "new")).fetch(np.arange(4))):
        assert isinstance(sample, Encoded)
        (caption,), labels = load_annotation(sample.annotation)
        assert (sample.key, sample.image) == (f"sample-{number}", image(number))
        assert labels == {"emotion": "fear", "AU4": number + 0.5, "person": "p"}
        assert caption.global_ == "The person looks clearly afraid."
    table = pq.read_table(tmp_path / "out/captions.parquet").to_pylist()
    assert (table[0]["captioner"], table[0]["prompt"]) == ("served", "faces 1")


def test_wrong_options_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    words = ("caption", "faces", tmp_path, tmp_path / "out", "--model", "m", "--endpoint")
    for options, message in [
        (("http://10.0.0.1/v1",), "without encryption"),
        (("https://h/v1", "--key-env", "CAPTION_TEST_EMPTY"), "this environment variable is empty"),
        (("https://h/v1", "--most-cost", 5), "--most-cost needs --price-prompt"),
        (("https://h/v1", "--prompt", "other"), "name one of faces"),
    ]:
        done = called(*words, *options)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked_before_the_kill", [1, 90])
def test_a_killed_command_asks_for_no_stored_answer_again(tmp_path: Path, asked_before_the_kill: int) -> None:
    count, at_once = 200, 16
    photos, log, out = tmp_path / "photos", tmp_path / "log", tmp_path / "out"
    photos.mkdir()
    for number in range(count):
        (photos / f"{number}.png").write_bytes(image(number))
    with served(log) as url:
        command = [sys.executable, "-m", "emocap_pretrain.cli", "caption", "faces", str(photos), str(out)]
        command += ["--endpoint", url, "--model", "m", "--concurrency", str(at_once)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
            while len(_asked(log)) < asked_before_the_kill:
                assert client.poll() is None, "the command ended before it was killed"
                time.sleep(0.002)  # Only so that this loop leaves the processor to the client.
            os.kill(client.pid, signal.SIGKILL)
        before = Counter(_asked(log))
        journal = open_journal(out / "answers.journal")
        stored = {f"{request}-{state.asks}" for request, state in journal.states.items() if state.asks}
        under_way = sum(state.is_under_way for state in journal.states.values())
        journal.close()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = Counter(_asked(log)) - before
    assert not stored & after.keys(), "an answer that was stored was asked for again"
    repeated = before.keys() & after.keys()
    assert len(repeated) <= under_way <= at_once
    assert len(before.keys() | after.keys()) == count
    assert (f"{under_way} request" in done.stdout) == (under_way > 0)
    assert pq.read_metadata(out / "captions.parquet").num_rows == count
