"""Computes the local loss on data that the model was not trained on, in batches of equal size on all ranks.

The local loss compares each sentence with all patches of all images of a batch. The patches of a whole dataset do not
fit into memory, so tasks never see them: a rank computes the patches of one batch, then the loss of this batch, and
keeps only the loss. The image tower therefore reads these images a second time. A batch is computed by one rank as a
whole, so the losses do not depend on the number of ranks.

The loss is that of docs/method.md, section 2, with the scope, the sharpness and the ignored patches of the model's
training, and without mining. It is computed in float64 on the CPU, as the mean of what each face adds to it
(`loss_values.py`), which a test between models needs.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
import torch
from emocap_kernels import region_attention, region_contrastive_loss
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from emocap_pretrain.data.parts import PROMPT_PART
from emocap_pretrain.evaluation.examples import Example, ExampleSource
from emocap_pretrain.evaluation.features import BatchFeatures, Extraction
from emocap_pretrain.evaluation.loss_values import LossValues, direction_values, jackknife_values
from emocap_pretrain.inference.embedder import Crop
from emocap_pretrain.inference.images import READERS
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.samples import answers_digest


def local_loss(
    extraction: Extraction,
    source: ExampleSource,
    collected: Sequence[BatchFeatures] | None,
    world: RankGroup,
    *,
    most_rows: int,
) -> LossValues | None:
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

    def losses() -> list[LossValues | None]:
        with ThreadPoolExecutor(READERS, "emocap-read") as readers:
            of_batch = partial(_of_batch, extraction, source, readers)
            return [of_batch(numbers) for numbers in batches[world.rank :: world.world_size]]

    shares = world.collect_on_main(losses)
    found = [each for share in shares or () for each in share if each]
    if not found:
        return None
    # The order does not matter: `fsum` rounds once.
    loss, ignorant = (math.fsum(column) / len(found) for column in zip(*(each[:2] for each in found), strict=True))
    found.sort(key=lambda each: each.rows)
    return LossValues(
        loss,
        ignorant,
        tuple(chain.from_iterable(each.rows for each in found)),
        tuple(chain.from_iterable(each.values for each in found)),
        answers_digest((f"{each.rows[0]}", [each.about]) for each in found),
    )


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
) -> LossValues | None:
    chosen = set(numbers)
    read = source.examples(range(numbers[0], numbers[-1] + 1))
    examples = [each for number, each in enumerate(read, numbers[0]) if number in chosen and isinstance(each, Example)]
    sentences = [(row, text) for row, each in enumerate(examples) for text in each.captions[0].local]
    if not sentences:
        return None
    about = answers_digest(
        (example.key, [_scope(extraction), *(text for owner, text in sentences if owner == row)])
        for row, example in enumerate(examples)
    )
    path, cache = "", extraction.cache
    if cache:
        contents = list(readers.map(_digest, examples))
        local = f"local losses {extraction.embedder.local} {_scope(extraction)}"
        how = [extraction.crop, str(extraction.resize), local]
        path = cache.path(contents, [*how, *(f"{row}: {text}" for row, text in sentences)])
    kept = cache.read(path) if cache else None
    values = kept["values"] if kept else _computed(extraction, readers, examples, sentences)
    if cache and not kept:
        cache.write(path, {"values": values})
    ignorant = _ignorant([row for row, _ in sentences], len(examples), _scope(extraction))
    return LossValues(math.fsum(values) / len(values), ignorant, tuple(numbers), tuple(values.tolist()), about)


def _computed(
    extraction: Extraction, readers: Executor, examples: Sequence[Example], sentences: Sequence[tuple[int, str]]
) -> Float64[np.ndarray, " faces"]:
    """Returns what each face of a batch adds to the loss."""
    embedder = extraction.embedder
    local = embedder.local
    assert local is not None, "the caller has asked whether the model has maps"
    words = [text for _, text in sentences]
    vectors = [
        embedder.sentences(words[at : at + extraction.batch], local.length)
        for at in range(0, len(words), extraction.batch)
    ]
    patches, kept = _patches(extraction, readers, examples)
    owner, texts = torch.tensor([row for row, _ in sentences]), torch.cat(vectors).double()
    scale = embedder.model.local_scale
    if _scope(extraction) == "batch":
        return values_between_images(
            patches.double(), texts, owner, scale, sharpness=local.sharpness, kept=kept
        ).numpy()

    def of_image(row: int) -> float:
        own = texts[owner == row]
        alone = torch.zeros(len(own), dtype=torch.int64)
        mask = None if kept is None else kept[row, None]
        image = patches[row, None].double()
        return float(region_contrastive_loss(image, own, alone, scale, scope="image", patch_mask=mask).loss)

    anchors = owner.unique()
    losses = torch.tensor([of_image(row) for row in anchors.tolist()], dtype=torch.float64)
    return jackknife_values(losses, anchors, samples=len(examples)).numpy()


def values_between_images(
    patches: Float64[Tensor, "images patches embedding"],
    sentences: Float64[Tensor, "sentences embedding"],
    owner: Int64[Tensor, " sentences"],
    scale: float,
    *,
    sharpness: float,
    kept: Bool[Tensor, "images patches"] | None = None,
) -> Float64[Tensor, " images"]:
    """Returns what each image of a batch adds to the local loss of scope `batch` (`direction_values`).

    Images without a sentence are no anchors. The arguments are those of `region_contrastive_loss`.
    """
    rows: list[Tensor] = []
    first = torch.zeros(len(sentences), dtype=torch.int64)
    for number, image in enumerate(patches):
        mask = None if kept is None else kept[number, None]
        weights = region_attention(image[None], sentences, first, sharpness=sharpness, patch_mask=mask)
        rows.append(scale * (weights * (sentences @ image.T)).sum(1))
    scores, images, anchors = torch.stack(rows), torch.arange(len(patches)), owner.unique()
    own = owner == images[:, None]
    to_sentences = direction_values(
        lambda block: scores[anchors[block]],
        lambda block: own[anchors[block]],
        anchors=anchors,
        candidates=owner,
        samples=len(images),
    )
    to_images = direction_values(
        lambda block: scores.T[block],
        lambda block: own.T[block],
        anchors=owner,
        candidates=images,
        samples=len(images),
    )
    return (to_sentences + to_images) / 2


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
