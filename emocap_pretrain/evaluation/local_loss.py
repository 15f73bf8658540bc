"""Computes the local loss on data that the model was not trained on, in batches of equal size on all ranks.

The local loss compares each sentence with all patches of all images of a batch. The patches of a whole dataset do not
fit into memory, so tasks never see them: a rank computes the patches of one batch, then the loss of this batch, and
keeps only the loss. The image tower therefore reads these images a second time. A batch is computed by one rank as a
whole, so the losses do not depend on the number of ranks.

The loss is `region_contrastive_loss` with the scope, the sharpness and the ignored patches of the model's training, and
without mining (docs/method.md, section 2). It is computed in float64 on the CPU.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from emocap_kernels import region_contrastive_loss
from jaxtyping import Bool, Float
from torch import Tensor

from emocap_pretrain.data.parts import PROMPT_PART
from emocap_pretrain.evaluation.examples import Example, ExampleSource
from emocap_pretrain.evaluation.features import BatchFeatures, Extraction
from emocap_pretrain.inference.embedder import Crop
from emocap_pretrain.inference.images import READERS
from emocap_pretrain.ranks.group import RankGroup


class LocalLoss(NamedTuple):
    """Holds the mean over batches of the local loss, and of that of a model that gives all pairs the same score."""

    loss: float
    ignorant: float


def local_loss(
    extraction: Extraction,
    source: ExampleSource,
    collected: Sequence[BatchFeatures] | None,
    world: RankGroup,
    *,
    most_rows: int,
) -> LocalLoss | None:
    """Returns the local loss of a split on rank 0; None on the other ranks. This is a collective.

    Of each face the first caption counts. Faces without a caption are left out, and those without a local sentence are
    only candidates for the sentences of the others. Batches without any local sentence do not count; if there is no
    other batch, or the model was not trained with local sentences, the result is None.

    Args:
        extraction: The model, and how images are read. With a cache, it also keeps the loss of each batch.
        source: The examples of the split, none of which may be left out.
        collected: All batches of vectors of the split on rank 0; other ranks pass None.
        world: The ranks.
        most_rows: The number of faces in a batch (`batches_of`).

    Raises:
        ConfigError: If patches are ignored by their contrast, and are not equal squares (`LocalAlignment.kept`).
        ShardsError: If the source cannot read its samples.
        ConfigError, LostContact: If another rank has failed (`RankGroup.run_on_all`).
    """
    if not extraction.embedder.has_maps:
        return None
    batches = world.run_on_main(lambda: batches_of(_captioned(collected or ()), most_rows))

    def losses() -> list[LocalLoss | None]:
        with ThreadPoolExecutor(READERS, "emocap-read") as readers:
            of_batch = partial(_of_batch, extraction, source, readers)
            return [of_batch(numbers) for numbers in batches[world.rank :: world.world_size]]

    shares = world.collect_on_main(losses)
    # The order does not matter: `fsum` rounds once.
    found = [each for share in shares or () for each in share if each]
    if not found:
        return None
    loss, ignorant = (math.fsum(column) / len(found) for column in zip(*found, strict=True))
    return LocalLoss(loss, ignorant)


def batches_of(faces: Sequence[int], most: int) -> list[Sequence[int]]:
    """Returns batches of exactly `most` faces in their order. The rest, which fills no batch, is left out.

    If there are fewer faces, they are one batch. There is no batch of fewer than two faces.

    >>> batches_of([0, 2, 3, 5, 8], 2)
    [[0, 2], [3, 5]]
    """
    rows = min(most, len(faces))
    return [faces[at : at + rows] for at in range(0, len(faces) - rows + 1, rows)] if rows > 1 else []


def _captioned(collected: Sequence[BatchFeatures]) -> list[int]:
    """Returns the numbers of the examples that have a caption, in ascending order."""
    firsts = np.cumsum([0, *(len(batch.keys) for batch in collected)]).tolist()
    return sorted(
        {
            first + text.row
            for first, batch in zip(firsts, collected, strict=False)
            for text in batch.texts
            if text.part == PROMPT_PART.name
        }
    )


def _of_batch(
    extraction: Extraction, source: ExampleSource, readers: Executor, numbers: Sequence[int]
) -> LocalLoss | None:
    chosen = set(numbers)
    read = source.examples(range(numbers[0], numbers[-1] + 1))
    examples = [each for number, each in enumerate(read, numbers[0]) if number in chosen and isinstance(each, Example)]
    sentences = [(row, text) for row, each in enumerate(examples) for text in each.captions[0].local]
    if not sentences:
        return None
    path, cache = "", extraction.cache
    if cache:
        contents = list(readers.map(_digest, examples))
        how = [extraction.crop, str(extraction.resize), f"local loss {extraction.embedder.local} {_scope(extraction)}"]
        path = cache.path(contents, [*how, *(f"{row}: {text}" for row, text in sentences)])
        if kept := cache.read(path):
            return LocalLoss(*kept["losses"].tolist())
    found = _computed(extraction, readers, examples, sentences)
    if cache:
        cache.write(path, {"losses": np.array(found)})
    return found


def _computed(
    extraction: Extraction, readers: Executor, examples: Sequence[Example], sentences: Sequence[tuple[int, str]]
) -> LocalLoss:
    embedder = extraction.embedder
    local = embedder.local
    assert local is not None, "the caller has asked whether the model has maps"
    words = [text for _, text in sentences]
    vectors = [
        embedder.sentences(words[at : at + extraction.batch], local.length)
        for at in range(0, len(words), extraction.batch)
    ]
    patches, kept = _patches(extraction, readers, examples)
    owner = torch.tensor([row for row, _ in sentences])
    found = region_contrastive_loss(
        patches.double(),
        torch.cat(vectors).double(),
        owner,
        embedder.model.local_scale,
        sharpness=local.sharpness,
        scope=_scope(extraction),
        patch_mask=kept,
    )
    return LocalLoss(float(found.loss), _ignorant(owner.tolist(), len(examples), _scope(extraction)))


def _patches(
    extraction: Extraction, readers: Executor, examples: Sequence[Example]
) -> tuple[Float[Tensor, "examples patches embedding"], Bool[Tensor, "examples patches"] | None]:
    """Returns the unit vectors of the patches of images, and which of them take part in the comparison."""
    embedder = extraction.embedder
    found: list[Tensor] = []
    kept: list[Tensor] = []
    for at in range(0, len(examples), extraction.batch):
        crops = list(readers.map(partial(_crop, extraction), examples[at : at + extraction.batch]))
        found.append(embedder.patches(crops))
        mask = embedder.local.kept(crops, found[0].shape[1]) if embedder.local else None
        kept += [] if mask is None else [mask]
    return torch.cat(found), torch.cat(kept) if kept else None


def _digest(example: Example) -> bytes:
    return example.content.digest()


def _crop(extraction: Extraction, example: Example) -> Crop:
    return example.content.crops(extraction.embedder.model.pixels, extraction.crop, extraction.resize)[0]


def _scope(extraction: Extraction) -> Literal["batch", "image"]:
    objective = extraction.embedder.objective
    return objective.scope if objective else "batch"


def _ignorant(owner: Sequence[int], rows: int, scope: str) -> float:
    """Returns the loss of equal scores: the mean over both directions of the logarithm of the number of candidates."""
    if scope == "batch":
        return (math.log(len(owner)) + math.log(rows)) / 2
    counts = Counter(owner).values()  # Only the sentences of the same image are candidates.
    return math.fsum(map(math.log, counts)) / len(counts)
