import io
import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from emocap_pretrain.captions.rendered.dataset import record, records, sample_face
from emocap_pretrain.captions.rendered.emotion import EMOTIONS
from emocap_pretrain.captions.rendered.face import DRAWN


def test_the_same_seed_and_index_give_the_same_bytes_and_words():
    assert record(3, 17) == record(3, 17)


def test_a_sample_does_not_depend_on_what_was_drawn_before_it():
    forwards = list(records(6, seed=2, pixels=48))
    backwards = [record(2, index, pixels=48) for index in reversed(range(6))]
    assert forwards == backwards[::-1]


def test_start_skips_samples():
    assert list(records(3, seed=1, pixels=48, start=4)) == list(records(7, seed=1, pixels=48))[4:]


def test_records_are_made_one_at_a_time():
    assert len(list(itertools.islice(records(10**9, pixels=32), 2))) == 2


def test_seeds_and_indices_differ():
    images = {record(seed, index, pixels=32).image for seed in range(3) for index in range(8)}
    assert len(images) == 24


def test_keys_sort_in_order_and_hold_neither_dot_nor_slash():
    keys = [made.key for made in records(12, seed=5, pixels=16)]
    assert keys == sorted(keys)
    assert keys[11] == "0005-00000011"


@pytest.mark.parametrize("pixels", [32, 112, 160])
def test_the_image_is_a_jpeg_of_the_size_asked_for(pixels: int):
    made = record(0, 1, pixels=pixels)
    image = Image.open(io.BytesIO(made.image))
    assert (made.extension, image.format, image.mode, image.size) == ("jpg", "JPEG", "RGB", (pixels, pixels))


def test_every_seven_samples_hold_each_emotion_once():
    for turn in range(20):
        assert {sample_face(9, 7 * turn + place).emotion for place in range(7)} == set(EMOTIONS)


def test_the_order_of_emotions_varies():
    assert len({tuple(sample_face(9, 7 * turn + place).emotion for place in range(7)) for turn in range(20)}) > 10


def test_labels_are_complete_and_in_range():
    for index in range(70):
        labels = record(4, index, pixels=16).labels
        assert set(labels) == {"emotion", "intensity", "valence", "arousal", *(f"AU{unit}" for unit in DRAWN)}
        numbers = {name: value for name, value in labels.items() if name != "emotion"}
        assert all(type(value) is float for value in numbers.values())
        assert all(-1 <= numbers[name] <= 1 for name in ("valence", "arousal"))
        assert all(0 <= value <= 1 for name, value in numbers.items() if name not in {"valence", "arousal"})


def test_people_vary():
    people = [sample_face(0, index).identity for index in range(300)]
    assert len(Counter(person.hair_style for person in people)) == 12
    assert len({person.skin for person in people}) == 300
    assert {person.glasses for person in people} == {"none", "round", "square"}


def test_the_person_is_independent_of_the_emotion():
    faces = [sample_face(0, index) for index in range(700)]
    happy = [sampled.identity.age for sampled in faces if sampled.emotion == "happiness"]
    assert abs(np.mean(happy) - np.mean([sampled.identity.age for sampled in faces])) < 0.06
