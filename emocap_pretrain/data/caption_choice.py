"""Chooses the caption with which an image is trained in an epoch, and leaves parts of it out at random.

All random numbers of a sample are drawn from (seed, epoch, sample index), so the choice is the same on any rank, in any
loader process and in any attempt (decision 2).
"""

from dataclasses import replace
from itertools import compress

import numpy as np
from emocap_shards.sample import Caption, Sample

from emocap_pretrain.config.captions import CaptionDropConfig, CaptionsConfig


def chosen_caption(sample: Sample, settings: CaptionsConfig, *, seed: int) -> Caption | None:
    """Returns the caption that is trained; None if the sample has none.

    By default it is the caption that the stream has chosen, and no part is left out.
    """
    if sample.caption is None or settings == CaptionsConfig():
        return sample.caption
    # The spawn key keeps these numbers apart from those of the augmentation of the same sample.
    sequence = np.random.SeedSequence((seed, sample.epoch, sample.index), spawn_key=(2,))
    random = np.random.default_rng(sequence)
    one, two, three, summary, local = random.random(5).tolist()
    caption = sample.caption
    if settings.weights or settings.per_part:
        caption = _of_all(sample.captions, settings, (one, two, three))
    return _without_parts(caption, settings.drop, summary, local, random)


def _of_all(captions: tuple[Caption, ...], settings: CaptionsConfig, numbers: tuple[float, float, float]) -> Caption:
    # The last weight also counts for all further captions.
    given = settings.weights or (1.0,)
    weights = [given[min(place, len(given) - 1)] for place in range(len(captions))]
    if not settings.per_part:
        return captions[_drawn(weights, numbers[0])]
    # A part is chosen among the captions that have it. Each caption has a global part.
    parts = [
        [bool(each.global_) for each in captions],
        [bool(each.local) for each in captions],
        [bool(each.summary) for each in captions],
    ]
    found = [
        list(compress(captions, has))[_drawn(list(compress(weights, has)), number)] if any(has) else captions[0]
        for has, number in zip(parts, numbers, strict=True)
    ]
    return Caption(found[0].global_, found[1].local, found[2].summary)


def _drawn(weights: list[float], number: float) -> int:
    """Returns an index that is drawn in proportion to the weights by a random number in [0, 1)."""
    bounds = np.cumsum(weights)
    return min(int(np.searchsorted(bounds, number * bounds[-1], side="right")), len(weights) - 1)


def _without_parts(
    caption: Caption, drop: CaptionDropConfig, summary: float, local: float, random: np.random.Generator
) -> Caption:
    if summary < drop.summary:
        caption = replace(caption, summary="")
    if local < drop.local:
        return replace(caption, local=())
    if drop.each_local:
        kept = random.random(len(caption.local)) >= drop.each_local
        caption = replace(caption, local=tuple(compress(caption.local, kept.tolist())))
    return caption
