"""Writes captions for any images, as a column of the table that `emocap_pretrain.bulk` writes."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from emocap_pretrain.bulk.scorers import Columns, Field
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.patches import PatchSettings, crop_vectors
from emocap_pretrain.inference.embedder import Crop, Embedder


@dataclass(frozen=True, slots=True, eq=False)
class CaptionScorer:
    """Implements `bulk.scorers.Scorer` with one column, `caption`.

    The patch vectors are rounded to float16, as in training and in `emocap caption score`. So an equal crop gets the
    same caption as in `emocap caption score`, if the captioner computes in float32.

    Attributes:
        embedder: The model whose image tower is used.
        captioner: The trained captioner.
        images: The settings of the patches. Only `image_tokens` is used.
    """

    embedder: Embedder
    captioner: Captioner
    images: PatchSettings

    @property
    def cropper(self) -> Embedder:
        return self.embedder

    @property
    def fields(self) -> Sequence[Field]:
        return [pa.field("caption", pa.string())]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        patches, _ = crop_vectors(self.embedder, crops, self.images.image_tokens)
        return {"caption": self.captioner.written(patches.float())}
