import io
from pathlib import Path

import pytest
from emocap_shards.errors import DamagedSample, ManifestError
from emocap_shards.inspecting.label_values import label_values
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image

LABELS = [{"mood": "joy", "age": 3}, {"mood": "fear"}, {"mood": ""}, {"age": 4.5}, {"mood": 0}, {"mood": "joy"}]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    rows = [
        Record(f"k{number}", file.getvalue(), "png", Caption("c", (), ""), each) for number, each in enumerate(LABELS)
    ]
    write_shards(rows, tmp_path / "packed", samples_per_shard=2)
    return tmp_path / "packed"


def test_every_value_of_a_label_is_counted_without_decoding_an_image(packed: Path) -> None:
    found = label_values(packed, "mood")
    assert found.values == {"joy": 2, "fear": 1, 0: 1}
    assert found.complete
    assert found.names == ("mood", "age")


def test_a_label_that_no_sample_has_has_no_value_and_the_others_are_named(packed: Path) -> None:
    found = label_values(packed, "emotion")
    assert (found.values, set(found.names)) == ({}, {"mood", "age"})


def test_reading_stops_after_its_time_and_says_how_far_it_came(packed: Path) -> None:
    found = label_values(packed, "mood", seconds=0.0)
    assert (found.looked, found.samples, found.complete) == (2, 6, False)


def test_a_damaged_sample_is_an_error_that_names_it(packed: Path) -> None:
    shard = next(packed.glob("**/*000001.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedSample, match="k2"):
        label_values(packed, "mood")


def test_a_folder_without_a_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        label_values(tmp_path, "mood")
