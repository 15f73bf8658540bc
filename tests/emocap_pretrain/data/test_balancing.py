import io
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import DamagedSample
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image
from pretrain_fakes import FakeRuntime, changed, stand_alone

from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.balancing import check_balance, read_balance
from emocap_pretrain.data.datasets import open_stream
from emocap_pretrain.dry_run.preflight import preflight
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.loop import pretrain

MOODS = ["joy"] * 12 + ["fear"] * 3 + ["0"] + [0.0] * 2


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Returns a function that packs samples with the given values of the label mood, in shards of five."""

    def make(values: list[str | float | None]) -> str:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, "PNG")
        caption = Caption("A face.", ("The brow.",), "A face with a brow.")
        rows = [
            Record(f"k{number}", file.getvalue(), "png", caption, {"id": "a"} if each is None else {"mood": each})
            for number, each in enumerate(values)
        ]
        folder: Path = tmp_path_factory.mktemp("moods") / "packed"
        write_shards(rows, folder, samples_per_shard=5)
        return str(folder)

    return make


def data_of(*urls: str, balanced: tuple[bool, ...] = (), weights: str = "inverse", label: str = "mood") -> DataConfig:
    flags = balanced or (True,) * len(urls)
    mix = [{"url": url, "balance": flag} for url, flag in zip(urls, flags, strict=True)]
    places: dict[str, object] = {"mix": mix} if len(urls) > 1 else {"url": urls[0]}
    return DataConfig.model_validate({**places, "balance": {"label": label, "weights": weights}})


def test_every_sample_gets_its_class_and_numbers_that_are_written_in_two_ways_are_one_class(pack) -> None:
    found = read_balance(data_of(pack(MOODS)))
    assert found is not None
    (classes,) = found.classes
    assert classes is not None
    assert classes.dtype == np.uint8
    assert classes.tolist() == [2] * 12 + [1] * 3 + [0] * 3
    assert found.exponent == 1.0
    root = read_balance(data_of(pack(MOODS), weights="inverse_sqrt"))
    assert root is not None
    assert root.exponent == 0.5


def test_without_the_setting_nothing_is_read() -> None:
    data = DataConfig(url="/no/such/dataset")
    assert read_balance(data) is None
    assert check_balance(data, global_batch=8) == []


def test_samples_without_the_label_are_counted_and_refused(pack) -> None:
    url = pack(["joy", None, "fear", "", "joy"])
    for check in (read_balance, lambda data: check_balance(data, global_batch=8)):
        with pytest.raises(
            ConfigError, match=r"data.balance: 2 of 5 samples of .* have no label mood: .*balance: false"
        ):
            check(data_of(url))
    with pytest.raises(ConfigError, match=r"5 of 5 samples of .* have no label smile; they have the labels id, mood"):
        check_balance(data_of(url, label="smile"), global_batch=8)


def test_a_dataset_of_a_mixture_without_the_label_needs_a_declaration(pack) -> None:
    labelled, bare = pack(MOODS), pack([None] * 4)
    with pytest.raises(ConfigError, match=r"4 of 4 samples"):
        read_balance(data_of(labelled, bare))
    found = read_balance(data_of(labelled, bare, balanced=(True, False)))
    assert found is not None
    assert found.classes[1] is None
    (note,) = check_balance(data_of(labelled, bare, balanced=(True, False)), global_batch=8)
    assert labelled in note


def test_a_label_that_is_not_one_of_several_classes_is_refused(pack) -> None:
    numbers = [number / 1000 for number in range(600)]
    for check in (read_balance, lambda data: check_balance(data, global_batch=8)):
        with pytest.raises(ConfigError, match="more than 256 values"):
            check(data_of(pack(numbers)))
        with pytest.raises(ConfigError, match="have the same mood"):
            check(data_of(pack(["joy"] * 3)))


def test_a_note_says_how_often_each_class_is_drawn_and_which_is_repeated_in_a_batch(pack) -> None:
    (note,) = check_balance(data_of(pack(MOODS)), global_batch=12)
    assert "0 33.3% (each of its 3 samples 2 times), fear 33.3%" in note
    assert "joy 33.3% (each of its 12 samples 0.5 times). A batch contains images of 0, fear more than once." in note
    (note,) = check_balance(data_of(pack(MOODS)), global_batch=6)
    assert "more than once" not in note


def test_reading_that_stops_early_says_nothing_about_shares(pack) -> None:
    assert check_balance(data_of(pack(MOODS)), global_batch=8, seconds=0.0) == []


def test_a_damaged_sample_is_an_error_that_names_it(pack) -> None:
    url = pack(MOODS)
    shard = next(Path(url).glob("**/*000001.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedSample, match="k5"):
        read_balance(data_of(url))


def test_the_stream_of_a_run_draws_the_classes_in_equal_shares(pack) -> None:
    data = data_of(pack(MOODS))
    stream = open_stream(data, Rank(), Cursor(), global_batch=6, seed=0, balance=read_balance(data))
    for step in itertools.islice(stream.steps(), 12):
        counts = Counter(str(sample.labels["mood"]).replace("0.0", "0") for sample in step.samples)
        assert counts == {"joy": 2, "fear": 2, "0": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": [{"url": "a", "balance": False}, {"url": "b"}]}, "needs data.balance"),
        ({"mix": [{"url": "a", "balance": False}], "balance": {"label": "mood"}}, "applies to no dataset"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(settings)


def test_classes_that_would_count_twice_are_refused(tiny_config: Config) -> None:
    labels = [{"name": "emotion", "classes": ["joy", "fear"], "balance": "inverse"}]
    with pytest.raises(ValueError, match="count twice"):
        changed(tiny_config, data__balance={"label": "emotion"}, objective__labels=labels)


def test_a_run_trains_on_balanced_samples_and_its_checks_describe_them(tiny_config: Config) -> None:
    stand_alone()
    config = changed(tiny_config, steps=2, data__balance={"label": "emotion"}, evaluation__url=None)
    found = preflight(config)
    assert found.problems == []
    assert any(note.startswith("data.balance draws from ") for note in found.notes)
    pretrain(config, FakeRuntime())
    missing = changed(config, url=f"{config.url}-other", data__balance={"label": "smile"})
    (line,) = preflight(missing).problems
    assert line.startswith("data.balance: 24 of 24 samples of ")
