from dataclasses import replace

import numpy as np
import pytest

from emocap_pretrain.captions.grammar.action_units import BANDS, VISIBLE, band
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.captions.rendered.emotion import EMOTIONS, PROTOTYPES, prototypes_of, sample_feeling
from emocap_pretrain.captions.rendered.face import DRAWN, Actions, Pose, actions
from emocap_pretrain.captions.rendered.render import render


def _nearest(train, train_names, test):
    """Returns the name of the nearest class centroid for each test row."""
    names = sorted(set(train_names))
    centroids = np.stack([train[train_names == name].mean(0) for name in names])
    distance = ((test[:, None] - centroids[None]) ** 2).sum(2)
    return np.array(names)[distance.argmin(1)]


def _units(sampled):
    return [sampled.actions[unit] for unit in DRAWN]


def test_there_are_seven_emotions_and_each_has_several_prototypes():
    assert len(EMOTIONS) == 7
    assert all(len(prototypes_of(emotion)) >= 3 for emotion in EMOTIONS)
    assert len({prototype.name for prototype in PROTOTYPES}) == len(PROTOTYPES)


def test_prototypes_use_known_action_units_only():
    assert all({*prototype.core, *prototype.extra} <= set(DRAWN) for prototype in PROTOTYPES)


def test_every_action_unit_occurs():
    assert {unit for index in range(700) for unit in sample_face(0, index).actions} == set(DRAWN)


@pytest.mark.parametrize(("value", "name"), [(0.1, "trace"), (0.2, "slight"), (0.59, "moderate"), (1.0, "extreme")])
def test_bands_start_at_their_floors(value: float, name: str):
    assert band(value) == name
    assert name in BANDS


def test_an_invisible_intensity_has_no_band():
    with pytest.raises(ValueError, match="no band"):
        band(0.09)


def test_weak_actions_are_dropped_and_strong_ones_clipped():
    assert dict(actions({1: 0.099 - 0.01, 4: 1.7, 12: 0.456}).strength) == {4: 1.0, 12: 0.46}


def test_action_units_that_are_not_drawn_are_refused():
    with pytest.raises(ValueError, match="AU3 cannot be drawn"):
        Actions({3: 0.5})
    with pytest.raises(ValueError, match="outside"):
        Actions({1: VISIBLE / 2})


def test_the_lid_of_a_closing_eye_is_not_raised_and_a_dropped_jaw_parts_the_lips():
    for index in range(700):
        acting = sample_face(1, index).actions
        assert not (acting[43] > 0.2 and 5 in acting)
        assert 25 in acting or acting[26] < 0.2


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_intensity_drives_the_actions(emotion: str):
    felt = [sample_feeling(emotion, np.random.default_rng([7, number])) for number in range(300)]
    assert all((one.intensity <= 0.15) == (emotion == "neutral") for one in felt)
    if emotion != "neutral":
        force = [sum(one.actions.strength.values()) for one in felt]
        assert np.corrcoef(force, [one.intensity for one in felt])[0, 1] > 0.35


def test_valence_and_arousal_have_the_signs_of_their_emotions():
    faces = [sample_face(2, index) for index in range(700)]
    mean = {e: np.mean([(f.valence, f.arousal) for f in faces if f.emotion == e], axis=0) for e in EMOTIONS}
    assert mean["happiness"][0] > 0.4
    assert all(mean[emotion][0] < -0.3 for emotion in ("sadness", "anger", "fear", "disgust"))
    assert all(mean[emotion][1] > 0.3 for emotion in ("anger", "fear", "surprise"))
    assert mean["sadness"][1] < -0.1
    assert np.abs(mean["neutral"]).max() < 0.2


def test_emotions_can_be_told_from_their_action_units():
    train, test = ([sample_face(seed, index) for index in range(700)] for seed in (0, 1))
    names, truth = (np.array([f.emotion for f in faces]) for faces in (train, test))
    guess = _nearest(np.array([_units(f) for f in train]), names, np.array([_units(f) for f in test]))
    assert (guess == truth).mean() > 0.8


def test_emotions_can_be_told_from_pixels_of_one_person():
    someone = sample_face(0, 0)
    scene = replace(someone.scene, pose=Pose())

    def drawn(seed, count):
        faces = [sample_face(seed, index) for index in range(count)]
        shown = [render(replace(f, identity=someone.identity, scene=scene), 48) for f in faces]
        return np.array(shown).reshape(count, -1) / 255, np.array([f.emotion for f in faces])

    train, names = drawn(0, 140)
    test, truth = drawn(1, 70)
    assert (_nearest(train, names, test) == truth).mean() > 0.55
