"""Finds the regions of the faces of a packed dataset, and the region that each local sentence is about.

The regions come from one of two sources. A rendered face is drawn from a seed and an index, which its key contains. So
the face is computed again from its key, and its regions are known if its caption is the one in the dataset. The regions
of photographs come from the points of the face mesh, which `emocap landmarks` finds. Which region a sentence is about
follows from its words (`grammar/recognition.py`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from emocap_shards.annotation import load_annotation
from emocap_shards.decode import decode_image
from emocap_shards.library import Library
from emocap_shards.sample import Caption, Encoded
from emocap_shards.writing.row import key_of

from emocap_pretrain.captions.face_mesh import mesh
from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.captions.rendered import regions as rendered
from emocap_pretrain.captions.rendered.captioner import caption as caption_of
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.data.landmarks import read_landmarks
from emocap_pretrain.data.regions import FaceRegions, Outline

Areas = Mapping[str, tuple[Outline, ...]]
_KEY = re.compile(r"(\d{4,10})-(\d{8,10})")
_TOGETHER = 256  # Samples that are read together.


@dataclass(slots=True)
class Missing:
    """Counts the samples of a dataset without known regions, and the sentences that name no region.

    Attributes:
        samples: Number of samples whose regions are not known. They are left out.
        sentences: Number of local sentences of the other samples that name no region of the face.
        examples: The keys of up to three of the samples that are left out.
    """

    samples: int = 0
    sentences: int = 0
    examples: list[str] = field(default_factory=list[str])


def find(
    url: str, areas_of: Callable[[Encoded, Caption], Areas | None], missing: Missing
) -> Iterator[tuple[str, FaceRegions]]:
    """Yields the key and the regions of each sample of a dataset in the order of its manifest.

    Samples whose regions are not known are left out.

    Args:
        url: The dataset.
        areas_of: Gets a sample and its first caption, and returns the regions of the face; None if they are not known.
        missing: Its counts are increased by what is left out.

    Raises:
        DamagedSample: If a sample is damaged.
    """
    for sample in _samples(url):
        captions, _ = load_annotation(sample.annotation)
        areas = areas_of(sample, captions[0]) if captions else None
        if not areas:
            missing.samples += 1
            missing.examples.extend([sample.key] * (len(missing.examples) < 3))
            continue
        named = [area_of(sentence) for sentence in captions[0].local]
        missing.sentences += named.count(None)
        # A region that the face does not have, such as one outside of the picture, has no sentence either.
        yield sample.key, FaceRegions(areas, tuple(each if each in areas else None for each in named))


def _samples(url: str) -> Iterator[Encoded]:
    library = Library.open(url)
    numbers = iter(range(sum(library.samples)))
    while some := list(islice(numbers, _TOGETHER)):
        for sample in library.fetch(np.array(some), direct=True):
            if isinstance(sample, Exception):
                raise sample
            yield sample


def of_rendered(sample: Encoded, caption: Caption) -> Areas | None:
    """Returns the regions of a rendered face; None if they are not known.

    They are not known if the key of the sample is not that of a rendered face, or if this version of the renderer makes
    a face with another caption from this key.
    """
    match = _KEY.fullmatch(sample.key)
    if match is None:
        return None
    face = sample_face(int(match[1]), int(match[2]))
    return rendered.areas(face) if caption_of(face) == caption else None


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Holds the landmarks that `emocap landmarks` has written, by the possible keys of the samples (`read`)."""

    points: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> "Landmarks":
        """Reads a file that `emocap landmarks` has written.

        The landmarks of an image are found by the key that `emocap pack` gives to the image, and also by the name of
        its file without folders and suffix.

        Raises:
            DataError: If the file cannot be read, or does not have the arrays of `emocap landmarks`.
        """
        stored = read_landmarks(path)
        rows = dict(zip(stored.names, stored.points, strict=True))
        return cls(
            {Path(name).stem: row for name, row in rows.items()} | {key_of(name): row for name, row in rows.items()}
        )

    def of(self, sample: Encoded, caption: Caption) -> Areas | None:  # noqa: ARG002 - the regions of a photograph do not depend on its caption
        """Returns the regions of a photograph; None if no face was found in it, or the file has no such photograph.

        Raises:
            ImageError: If the photograph cannot be decoded.
        """
        found = self.points.get(sample.key)
        if found is None or not np.isfinite(found).all():
            return None
        height, width = decode_image(sample.image).shape[:2]
        return mesh.areas(found, width_px=width, height_px=height)
