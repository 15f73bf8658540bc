"""Tests that captions of rendered faces and of FER+ can be mirrored, and that they fit the prompts of the recipes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from emocap_shards.sample import Caption

from emocap_pretrain.captions.ferplus import captioner as ferplus
from emocap_pretrain.captions.grammar.action_units import Band
from emocap_pretrain.captions.grammar.emotions import EMOTIONS
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Region, RegionState
from emocap_pretrain.captions.rendered import captioner as rendered
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.data.mirror import mirrored

RECIPES = Path(__file__).parents[3] / "launch/recipes"
PAIRED = ("eyebrow", "eye", "upper eyelid", "lower eyelid", "eyelid", "cheek", "nasolabial fold", "lip corner")


def rendered_captions() -> Iterator[tuple[str, Caption]]:
    for index in range(700):
        face = sample_face(5, index)
        yield face.emotion, rendered.caption(face)


def ferplus_captions() -> Iterator[tuple[str, Caption]]:
    """Yields captions with and without votes, over all regions, looks and mixtures of emotions."""
    rng = np.random.default_rng(0)
    table = [look for look in LOOKS.values() if look.units]
    for number, (first, second) in enumerate(product(EMOTIONS * 4, EMOTIONS)):
        votes = dict.fromkeys((*EMOTIONS, "unknown", "NF"), 0)
        votes[first] += int(rng.integers(5, 9))
        votes[second] += 10 - votes[first]
        cues = [RegionState(region, AT_REST[region]) for region in AT_REST if rng.random() < 0.3]
        for look, band in product(rng.permutation(np.array(table, dtype=object))[:3], (Band.SLIGHT, Band.STRONG)):
            if look.covers(band):
                cues.append(RegionState(Region.LIPS, look, (band,) * len(look.units)))
        yield first, ferplus.caption(votes, cues, str(number))
        yield "", ferplus.caption_without_votes(cues, str(number))


def texts(caption: Caption) -> tuple[str, ...]:
    return caption.global_, *caption.local, caption.summary


@pytest.mark.parametrize("captions", [rendered_captions, ferplus_captions])
def test_a_caption_names_no_side_and_is_never_kept_from_mirroring(captions):
    for _, caption in captions():
        assert not re.search(r"\b(left|right)", " ".join(texts(caption)), re.IGNORECASE)
        assert mirrored(caption) == caption


def with_sides(text: str, side: str) -> str:
    """Returns the sentence with a side before the first paired part of the face, which becomes a singular."""
    return re.sub(rf"\b({'|'.join(PAIRED)})s\b", rf"{side} \1", text, count=1)


@pytest.mark.parametrize("captions", [rendered_captions, ferplus_captions])
def test_a_caption_to_which_a_side_is_added_is_mirrored(captions):
    added = 0
    for _, caption in captions():
        left, right = (
            replace(caption, local=tuple(with_sides(text, side) for text in caption.local))
            for side in ("left", "right")
        )
        added += left != right
        assert mirrored(left) == right
        assert mirrored(right) == left
    assert added > 200


@pytest.mark.parametrize(("recipe", "captions"), [("tiny", rendered_captions), ("ferplus", ferplus_captions)])
def test_the_words_of_every_prompt_occur_in_captions_of_its_class(recipe, captions):
    found = {}
    for emotion, caption in captions():
        found.setdefault(emotion, set()).update(re.findall(r"[a-z]+", " ".join(texts(caption)).lower()))
    classes = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["evaluation"]["classes"]
    for emotion, prompts in classes.items():
        assert set(" ".join(prompts).split()) <= found[emotion], emotion
