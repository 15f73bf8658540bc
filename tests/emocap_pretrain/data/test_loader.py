import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import pytest
import torch
from emocap_shards.cursor import Cursor
from emocap_shards.errors import DamagedSample
from emocap_shards.sample import Caption, Sample
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from pretrain_fakes import tensors_of

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.loader import (
    Collate,
    LoadedBatch,
    _raise_errors,
    batches,
    shrink_to_fit,
    shrink_to_fit_and_warn,
)
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import augment
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.training.build import build_collate

TOKENIZER = Tokenizer.trained_on(["a happy face with raised cheeks", "the brows are drawn together"], 300)
STEPS_OF_AN_EPOCH = 5  # 24 faces, 5 a step: the last one has 4.


@pytest.fixture
def stream(faces: str) -> Stream:
    return Stream(url=faces, global_batch=5, seed=3, window_samples=12)


def equal(left: Sequence[LoadedBatch], right: Sequence[LoadedBatch]) -> bool:
    if [each.cursor for each in left] != [each.cursor for each in right]:
        return False
    ours, theirs = ([each for delivery in side for each in tensors_of(delivery.batch)] for side in (left, right))
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def take(config: Config, stream: Stream, count: int, **changes) -> list[LoadedBatch]:
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    loader = batches(
        stream, build_collate(config, TOKENIZER), workers=config.data.workers, prefetch=config.data.prefetch
    )
    return list(itertools.islice(loader, count))


def raising(error: Exception) -> Iterator[LoadedBatch]:
    raise error
    yield  # Makes the function a generator.


def prepared(collate: Collate, samples: Sequence[Sample]) -> Batch:
    return collate([collate.prepare(sample) for sample in samples])


def test_loader_processes_give_the_same_batches_in_the_same_order(tiny_config, stream):
    alone = take(tiny_config, stream, 8)
    assert equal(alone, take(tiny_config, stream, 8, workers=2, prefetch=1))
    assert not equal(alone, alone[::-1])


RANK = """
import json, sys, time
import psutil
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.loader import batches
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.training.build import build_collate
from emocap_shards.stream import Stream

config = Config.model_validate_json(sys.argv[1])
tokenizer = Tokenizer.trained_on(["a happy face"], 300)
stream = Stream(url=config.data.url, global_batch=5)
collate = build_collate(config, tokenizer)
for _ in batches(stream, collate, workers=config.data.workers, prefetch=config.data.prefetch):
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
    time.sleep(600)
"""


def test_a_rank_that_is_killed_leaves_no_loader_processes(tiny_config):
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"workers": 2})})
    command = [sys.executable, "-c", RANK, config.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(rank.stdout.readline())]
        rank.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 30
    while (alive := [child for child in children if runs(child)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in alive:
        child.kill()
    assert not alive


def runs(process: psutil.Process) -> bool:
    """Returns whether a process has not ended; a zombie, whose exit code nobody has read yet, has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a small /dev/shm of its own")
@pytest.mark.parametrize("room", ["4k", "64k", "1m"])
def test_loader_processes_without_room_in_shared_memory_end_with_a_line_and_do_not_hang(tiny_config, room):
    config = tiny_config.model_dump(mode="json")
    config["data"]["workers"] = 2
    config["model"]["image"]["pixels"] = 400  # A batch takes 2.4 MB.
    small = f'mount -t tmpfs -o size={room} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", small, "sh", sys.executable, "-c", RANK, json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert "DataError: /dev/shm of " in done.stderr.splitlines()[-1]
    assert "--shm-size=8g" in done.stderr


def test_loader_processes_are_as_many_as_shared_memory_has_room_for(tiny_config):
    data = tiny_config.data.model_copy(update={"workers": 4, "prefetch": 2})

    def found(batches_of_room: int, ranks: int = 1) -> tuple[int, int]:
        settings = shrink_to_fit(data, each_bytes=1000, ranks=ranks, free_bytes=1000 * batches_of_room)
        return settings.workers, settings.prefetch

    assert [found(room) for room in (9, 8, 5, 4, 3, 2)] == [(4, 2), (4, 1), (4, 1), (3, 1), (2, 1), (1, 1)]
    assert found(18, ranks=2) == (4, 2)
    assert found(17, ranks=2) == (4, 1)
    with pytest.raises(ConfigError, match=r"1 kB free, but 1 rank would need 2 kB .*--shm-size=8g.*data.workers=0"):
        found(1)
    alone = data.model_copy(update={"workers": 0})
    assert shrink_to_fit(alone, each_bytes=1000, ranks=8, free_bytes=0) == alone


def test_a_batch_of_256_images_does_not_fit_twice_into_a_container_s_default(tiny_config, caplog):
    data = tiny_config.data.model_copy(update={"workers": 2, "prefetch": 2})
    model = tiny_config.model.model_copy(update={"image": tiny_config.model.image.model_copy(update={"pixels": 224})})
    config = tiny_config.model_copy(update={"data": data, "model": model})
    each_bytes = build_collate(config, TOKENIZER).batch_bytes(256)
    with pytest.raises(ConfigError, match=r"/dev/shm of .* has 67.1 MB free"):
        shrink_to_fit_and_warn(data, each_bytes=each_bytes, ranks=2, free_bytes=64 << 20)
    assert shrink_to_fit_and_warn(data, each_bytes=each_bytes, ranks=2, free_bytes=1 << 30) == data
    assert not caplog.text
    assert shrink_to_fit_and_warn(data, each_bytes=each_bytes, ranks=2, free_bytes=300 << 20).workers == 2
    assert "data.workers=2 and data.prefetch=1 instead of 2 and 2" in caplog.text
    assert shrink_to_fit_and_warn(data, each_bytes=each_bytes, ranks=2, free_bytes=None) == data


def test_the_size_of_a_batch_is_about_what_its_tensors_take(tiny_config, stream):
    batch = take(tiny_config, stream, 1)[0].batch
    taken = sum(each.nbytes for each in tensors_of(batch))
    assert taken <= build_collate(tiny_config, TOKENIZER).batch_bytes(batch.rows) <= taken + (128 << 10)


def test_a_loader_process_that_is_killed_is_a_line(tiny_config, stream):
    running = batches(stream, build_collate(tiny_config, TOKENIZER), workers=1, prefetch=1)
    next(running)
    for child in psutil.Process().children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    with pytest.raises(TrainingError, match=r"a loader process of .* has ended .*data.workers"):
        list(itertools.islice(running, 100))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        ConnectionRefusedError(111, "Connection refused"),
        EOFError(),
    ],
)
def test_a_connection_that_an_ending_loader_process_closes_is_the_same_line(error):
    with pytest.raises(TrainingError, match=r"a loader process of .* has ended .*data.workers"):
        next(_raise_errors(raising(error), processes=1))


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_within_loading_stays_as_it_is(processes):
    for error in [
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0."),
    ]:
        with pytest.raises(type(error), match="Caught"):
            next(_raise_errors(raising(error), processes=processes))
    with pytest.raises(ConnectionRefusedError):
        next(_raise_errors(raising(ConnectionRefusedError(111, "Connection refused")), processes=0))


def test_an_ended_loader_process_raises_no_error_outside_of_loading(tiny_config, stream):
    before = signal.getsignal(signal.SIGCHLD)
    with contextlib.closing(batches(stream, build_collate(tiny_config, TOKENIZER), workers=1)):
        assert signal.getsignal(signal.SIGCHLD) is before


def test_resuming_from_any_cursor_gives_the_same_next_batches(tiny_config, stream):
    whole = take(tiny_config, stream, 2 * STEPS_OF_AN_EPOCH + 1)
    for done, (_, cursor, _) in enumerate(whole[:-1], 1):
        resumed = dataclasses.replace(stream, start=cursor)
        assert equal(take(tiny_config, resumed, len(whole) - done), whole[done:])


def test_the_last_step_of_an_epoch_takes_the_remainder(tiny_config, stream):
    rows = [delivery.batch.rows for delivery in take(tiny_config, stream, 7)]
    assert rows == [5, 5, 5, 5, 4, 5, 5]


def test_ranks_share_an_uneven_step_without_overlap(tiny_config, stream):
    whole = take(tiny_config, stream, STEPS_OF_AN_EPOCH)
    ranks = [
        take(tiny_config, dataclasses.replace(stream, rank=rank, world_size=3), STEPS_OF_AN_EPOCH) for rank in range(3)
    ]
    for (batch, cursor, _), *shares in zip(whole, *ranks, strict=True):
        assert {share[1] for share in shares} == {cursor}
        assert torch.equal(torch.cat([share[0].images for share in shares]), batch.images)
        assert torch.equal(
            torch.cat([share[0].texts["global"].identity for share in shares]), batch.texts["global"].identity
        )


def test_a_rank_without_rows_has_an_empty_batch(tiny_config, faces):
    last = Stream(url=faces, global_batch=23, rank=0, world_size=2)
    batch = take(tiny_config, last, 2)[1].batch
    assert batch.rows == 0
    assert batch.tokens == 0
    assert batch.images.shape == (0, 3, 16, 16)
    owner, identity = batch.texts["local"].owner, batch.texts["global"].identity
    assert owner.shape == identity.shape == (0,)
    assert owner.dtype == identity.dtype == torch.int64


def test_augmentation_changes_with_the_epoch_and_not_with_the_place_in_it(tiny_config, stream):
    sample = stream.read([7])[0]
    collate = build_collate(tiny_config, TOKENIZER)
    others = stream.read([1, 2])
    first = prepared(collate, [sample]).images[0]
    assert torch.equal(prepared(collate, [*others, sample]).images[2], first)
    assert not torch.equal(prepared(collate, [dataclasses.replace(sample, epoch=1)]).images[0], first)
    expected, _ = augment(sample.image, 16, crop=tiny_config.data.crop, flip=tiny_config.data.flip, key=(0, 0, 7))
    assert torch.equal(first, torch.from_numpy(expected.transpose(2, 0, 1).copy()))


def test_every_step_of_an_epoch_is_augmented_with_that_epoch(tiny_config, faces):
    """The last step of an epoch ends at the next epoch's beginning, and is still of its own epoch."""
    in_order = Stream(url=faces, global_batch=5, shuffle=False)
    samples = in_order.read(range(24))
    collate = build_collate(tiny_config, TOKENIZER)
    for epoch in range(2):
        steps = take(tiny_config, dataclasses.replace(in_order, start=Cursor(epoch, 0)), STEPS_OF_AN_EPOCH)
        images = torch.cat([delivery.batch.images for delivery in steps])
        assert torch.equal(
            images, prepared(collate, [dataclasses.replace(sample, epoch=epoch) for sample in samples]).images
        )


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_the_words_of_a_caption_follow_the_mirror(tiny_config, flip):
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"flip": flip, "crop": 1.0})})
    collate = build_collate(config, TOKENIZER)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[:, 8:] = 255  # Bright on the right.
    seen = set[tuple[bool, str]]()
    for index in range(40):
        sample = dataclasses.replace(captioned(index, "Bright on the right side.", ("The left brow.",)), image=image)
        mirror = collate.prepare(sample)
        brighter = bool(mirror.image[0, 15, 0] > mirror.image[0, 0, 0])
        seen.add((brighter, mirror.caption.global_ + mirror.caption.local[0]))
    as_stored = (True, "Bright on the right side.The left brow.")
    in_the_mirror = (False, "Bright on the left side.The right brow.")
    assert seen == {0.0: {as_stored}, 0.5: {as_stored, in_the_mirror}, 1.0: {in_the_mirror}}[flip]


def test_an_image_whose_caption_cannot_be_mirrored_is_not_mirrored(tiny_config):
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"flip": 1.0, "crop": 1.0})})
    image = np.arange(16, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    sample = dataclasses.replace(captioned(0, "The mouth is left open."), image=image)
    kept = build_collate(config, TOKENIZER).prepare(sample)
    assert np.array_equal(kept.image, image)
    assert kept.caption == sample.caption


def captioned(index: int, whole: str, local: tuple[str, ...] = (), summary: str = "") -> Sample:
    caption = Caption(whole, local, summary)
    return Sample(index, f"k{index}", np.zeros((16, 16, 3), dtype=np.uint8), caption, {})


def test_sentences_know_the_row_they_belong_to(tiny_config):
    samples = [captioned(0, "a", ("x y", "z")), captioned(1, "b"), captioned(2, "c", ("the brows",))]
    batch = build_collate(tiny_config, TOKENIZER)(samples)
    assert batch.texts["local"].owner.tolist() == [0, 0, 2]
    expected = TOKENIZER.encode(["x y", "z", "the brows"], 16)
    assert torch.equal(batch.texts["local"].ids, expected.ids)
    assert torch.equal(batch.texts["local"].mask, expected.mask)


def test_equal_captions_have_equal_numbers(tiny_config):
    samples = [captioned(0, "a", (), "s"), captioned(1, "b", (), "s"), captioned(2, "a", (), "t")]
    batch = build_collate(tiny_config, TOKENIZER)(samples)
    ids, summary_ids = batch.texts["global"].identity, batch.texts["summary"].identity
    assert (ids[:, None] == ids).int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (summary_ids[:, None] == summary_ids).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_captions_with_equal_tokens_have_equal_identities_in_any_batch(tiny_config):
    long = "the brows are drawn together and the lips are pressed and the cheeks are raised"
    samples = [captioned(0, f"{long} once"), captioned(1, f"{long} twice"), captioned(2, long.upper())]
    collate = build_collate(tiny_config, TOKENIZER)
    alone, batch = (collate(some).texts["global"] for some in (samples[:1], samples))
    assert len(set(batch.identity.tolist())) == 1
    short = [captioned(3, "a"), captioned(4, "A")]
    first, second = (collate(some).texts["global"] for some in (short, [*short, *samples]))
    assert first.ids.shape[1] < second.ids.shape[1]
    assert first.identity.tolist() == second.identity.tolist()[:2]
    assert len({alone.identity.item(), *second.identity.tolist()}) == 2


def test_each_part_is_cut_at_its_own_length(tiny_config):
    long = "a happy face with raised cheeks " * 9
    batch = build_collate(tiny_config, TOKENIZER)([captioned(0, long, (long,), long)])
    found = {name: texts.ids.shape[1] for name, texts in batch.texts.items()}
    assert found == tiny_config.model.text.lengths.by_part == {"global": 16, "local": 16, "summary": 24}


def test_a_part_that_the_objective_leaves_out_is_not_tokenised(tiny_config):
    off = tiny_config.objective.model_copy(update={"summary": 0.0, "local": 0.0})
    config = tiny_config.model_copy(update={"objective": off})
    batch = build_collate(config, TOKENIZER)([captioned(0, "a", ("b",), "c")])
    assert batch.texts.keys() == {"global"}
    assert batch.rows == 1


def test_an_error_of_a_loader_process_is_raised_unchanged(tiny_config, tmp_path):
    faces = str(tmp_path / "faces")
    write_shards(records(8, pixels=32), faces, samples_per_shard=8)
    (shard,) = tmp_path.joinpath("faces").glob("*.tar")
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DamagedSample) as caught:
        take(tiny_config, Stream(url=faces, global_batch=8), 1, workers=1)
    assert "Traceback" not in str(caught.value)
    assert caught.value.shard.endswith(shard.name)
