"""Generates an endless dataset of synthetic faces. A sample depends only on its seed and its index.

`sample_face` draws the random values of a `Face`, `render` makes its picture, and `caption` writes its caption. Picture
and caption are made from the same values, so the caption is true of the picture.
"""

import io
from collections.abc import Iterator

import numpy as np
from emocap_shards.sample import Record
from PIL import Image

from emocap_pretrain.captions.rendered.captioner import caption
from emocap_pretrain.captions.rendered.emotion import EMOTIONS, sample_feeling
from emocap_pretrain.captions.rendered.face import DRAWN, Face, sample_identity, sample_scene
from emocap_pretrain.captions.rendered.render import render

JPEG_QUALITY = 92


def sample_face(seed: int, index: int) -> Face:
    """Samples the face with this index. The indices `7 * k` to `7 * k + 6` have each of the seven emotions once.

    Person, scene, emotion and wording come from separate random streams, so they are independent of one another.
    """
    # Each group of seven indices has a random order of the emotions, drawn from the number of the group.
    turn, place = divmod(index, len(EMOTIONS))
    emotion = EMOTIONS[int(_stream(seed, turn, 0).permutation(len(EMOTIONS))[place])]
    feeling = sample_feeling(emotion, _stream(seed, index, 1))
    return Face(
        identity=sample_identity(_stream(seed, index, 2)),
        scene=sample_scene(_stream(seed, index, 3)),
        actions=feeling.actions,
        emotion=emotion,
        shade=feeling.shade,
        intensity=feeling.intensity,
        valence=feeling.valence,
        arousal=feeling.arousal,
        wording=int(_stream(seed, index, 4).integers(2**31)),
    )


# Within a purpose, the order of draws is fixed. A further draw belongs at the end of its function: it would change all
# later draws of the same stream, and with them every face.
def _stream(seed: int, number: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, purpose])


def record(seed: int, index: int, *, pixels: int = 112) -> Record:
    """Returns sample `index` of `seed`: a JPEG image of `pixels` x `pixels`, its caption and its labels.

    The labels are "emotion", "intensity" in [0, 1], "valence" and "arousal" in [-1, 1], and the intensity of each
    action unit in [0, 1] ("AU1" to "AU43").
    """
    sampled = sample_face(seed, index)
    return Record(
        key=f"{seed:04d}-{index:08d}",
        image=_jpeg(sampled, pixels),
        extension="jpg",
        caption=caption(sampled),
        labels=_labels(sampled),
    )


def records(count: int, *, seed: int = 0, pixels: int = 112, start: int = 0) -> Iterator[Record]:
    """Yields the samples `start` to `start + count - 1` of `seed`, in order. A sample is made when it is requested."""
    return (record(seed, index, pixels=pixels) for index in range(start, start + count))


def _jpeg(sampled: Face, pixels: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(sampled, pixels)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _labels(sampled: Face) -> dict[str, str | float]:
    return {
        "emotion": sampled.emotion,
        "intensity": sampled.intensity,
        "valence": sampled.valence,
        "arousal": sampled.arousal,
        **{f"AU{unit}": sampled.actions[unit] for unit in DRAWN},
    }
