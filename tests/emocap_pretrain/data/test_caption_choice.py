from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from emocap_shards.sample import Caption, Sample
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from emocap_pretrain.config.captions import CaptionsConfig
from emocap_pretrain.data.caption_choice import chosen_caption
from emocap_pretrain.data.loader import Collate
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.tokenizer import Tokenizer

FIRST = Caption("G0.", ("The left brow.", "The mouth.", "The chin."), "S0.")
SECOND = Caption("G1.", (), "S1.")
THIRD = Caption("G2.", ("The eyes.",), "")


def settings(**values) -> CaptionsConfig:
    return CaptionsConfig.model_validate(values)


def sample(index: int = 0, *further: Caption, epoch: int = 0) -> Sample:
    return Sample(index, f"k{index}", np.zeros((8, 8, 3), dtype=np.uint8), FIRST, {}, further, epoch)


def counted(config: CaptionsConfig, *further: Caption, count: int = 2000) -> Counter:
    return Counter(chosen_caption(sample(index, *further), config, seed=1) for index in range(count))


def test_by_default_the_caption_of_the_stream_is_trained_whole():
    assert chosen_caption(sample(0, SECOND), settings(), seed=0) is FIRST
    assert chosen_caption(replace(sample(), caption=None), settings(weights=[1]), seed=0) is None


def test_captions_are_chosen_by_their_weights_in_the_order_in_which_they_are_stored():
    drawn = counted(settings(weights=[6, 3, 1]), SECOND, THIRD)
    assert abs(drawn[FIRST] / 2000 - 0.6) < 0.05
    assert abs(drawn[SECOND] / 2000 - 0.3) < 0.05
    assert abs(drawn[THIRD] / 2000 - 0.1) < 0.03
    # The stream has chosen the second caption; the order of storage is still first, second, third.
    moved = replace(sample(5), caption=SECOND, further=(FIRST, THIRD), shown=1)
    assert moved.captions == (FIRST, SECOND, THIRD)
    config = settings(weights=[6, 3, 1])
    assert chosen_caption(moved, config, seed=1) == chosen_caption(sample(5, SECOND, THIRD), config, seed=1)


def test_the_last_weight_counts_for_all_further_captions_and_fewer_captions_share_the_first_ones():
    drawn = counted(settings(weights=[2, 1]), SECOND, THIRD)
    assert abs(drawn[FIRST] / 2000 - 0.5) < 0.05
    assert abs(drawn[THIRD] / 2000 - 0.25) < 0.05
    assert counted(settings(weights=[1, 9, 9])) == {FIRST: 2000}


def test_each_part_is_chosen_among_the_captions_that_have_it():
    found = counted(settings(per_part=True), SECOND, THIRD)
    assert {each.global_ for each in found} == {"G0.", "G1.", "G2."}
    assert {each.local for each in found} == {FIRST.local, THIRD.local}
    assert {each.summary for each in found} == {"S0.", "S1."}
    assert len(found) == 12
    # Without a caption that has local sentences, there are none.
    bare = replace(sample(0, SECOND), caption=replace(FIRST, local=()))
    assert chosen_caption(bare, settings(per_part=True), seed=0).local == ()


def test_parts_are_left_out_as_often_as_configured_and_the_global_part_stays():
    found = [
        chosen_caption(sample(index), settings(drop={"summary": 0.3, "local": 0.2, "each_local": 0.3}), seed=1)
        for index in range(2000)
    ]
    assert all(each.global_ == "G0." for each in found)
    assert abs(np.mean([not each.summary for each in found]) - 0.3) < 0.05
    # All three are left out together, or each of them on its own.
    assert abs(np.mean([not each.local for each in found]) - (0.2 + 0.8 * 0.027)) < 0.05
    assert abs(np.mean([len(each.local) for each in found]) - 0.8 * 3 * 0.7) < 0.1
    both = np.mean([not each.summary and not each.local for each in found])
    assert abs(both - 0.3 * (0.2 + 0.8 * 0.027)) < 0.03, "one part is left out independently of the other"
    assert all(set(each.local) <= set(FIRST.local) for each in found)


def test_a_sample_is_trained_with_another_choice_in_another_epoch():
    config = settings(weights=[1], drop={"summary": 0.5})
    found = {chosen_caption(sample(3, SECOND, THIRD, epoch=epoch), config, seed=1) for epoch in range(40)}
    assert {each.global_ for each in found} == {"G0.", "G1.", "G2."}
    assert {each.summary for each in found} >= {"", "S0."}


@given(st.integers(0, 2**31 - 1), st.integers(0, 50), st.integers(0, 2**40), st.permutations(range(3)))
def test_the_choice_depends_on_seed_epoch_and_sample_alone(seed, epoch, index, order):
    config = settings(weights=[1, 2], per_part=True, drop={"summary": 0.3, "each_local": 0.3})
    keys = [(seed, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)]

    def found(key: tuple[int, int, int]) -> Caption:
        return chosen_caption(sample(key[2], SECOND, THIRD, epoch=key[1]), config, seed=key[0])

    once = [found(each) for each in keys]
    again = {place: found(keys[place]) for place in order}
    assert [again[place] for place in range(3)] == once


def test_terms_see_a_dropped_part_as_a_missing_one():
    tokenizer = Tokenizer.trained_on(["the left brow and the mouth"], 300)
    lengths = {part.name: 16 for part in PARTS}
    drop = settings(drop={"summary": 0.99, "local": 0.99})
    collate = Collate(tokenizer, PARTS, lengths, pixels=8, seed=0, crop=1.0, flip=0.0, captions=drop)
    index = next(each for each in range(20) if chosen_caption(sample(each), drop, seed=0) == Caption("G0.", (), ""))
    batch = collate([collate.prepare(sample(index))])
    missing = replace(collate, captions=settings())
    same = missing([missing.prepare(replace(sample(index), caption=Caption("G0.", (), "")))])
    for part in PARTS:
        assert batch.texts[part.name].ids.tolist() == same.texts[part.name].ids.tolist()
    assert batch.texts["local"].ids.shape[0] == 0
    assert batch.texts["summary"].ids.tolist() == batch.texts["global"].ids.tolist()


@pytest.mark.parametrize(
    "wrong", [{"weights": []}, {"weights": [0, 1]}, {"drop": {"local": 1}}, {"drop": {"global": 0.1}}]
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)
