"""Describes the batch of the global loss on one rank: its own rows, and the rows of other ranks as they arrive.

`chunked` and `fused` get a sharded batch: this rank scores its own images against all texts, which arrive in blocks.
`reference` gets a replicated batch: every rank holds all rows and computes everything. A backend receives blocks of
texts, and its computation does not depend on the ranks from which they came (decision 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emocap_kernels.contrastive.inputs import ContrastiveInputs
from emocap_kernels.contrastive.objectives import ContrastiveObjective
from emocap_kernels.distributed.columns import ColumnAllGather, ColumnBlock, ColumnReduceScatter
from emocap_kernels.distributed.ranks import SINGLE_RANK, Partition, Ranks
from emocap_kernels.distributed.reductions import gather_replicated, gather_rows
from emocap_kernels.matmul import matmul
from emocap_kernels.mining import Mining, first_duplicates
from emocap_kernels.positives import (
    IMAGE_ANCHORS,
    MODALITIES,
    TEXT_ANCHORS,
    GuideSimilarities,
    MinedLists,
    Modality,
    compares_modalities,
    modalities_to_gather,
)
from emocap_kernels.precision import compute_dtype, product_dtype, scale_tensor


@dataclass(frozen=True, slots=True)
class GuideFeatures:
    """Holds the guide features of the rows of this rank, without a gradient.

    Guide features are the vectors that mining compares to find further positives. For the objective `soft`, they are
    the features of the teacher, and the cosines between them give the teacher's scores.

    Attributes:
        own: The features of each modality, [local, width of that modality].
        are_embeddings: Whether the features are the embeddings themselves. In that case the guide `joint`, which
            compares images with texts, uses exactly the cosines from which the scores are computed.
    """

    own: Mapping[Modality, Tensor]
    are_embeddings: bool

    def similarity(
        self,
        similarities: GuideSimilarities,
        rows: slice,
        candidates: Mapping[Modality, Tensor],
        duplicates: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Returns the similarity of local anchors with candidates, [rows, candidates].

        Args:
            similarities: One or two entries (modality of the anchor, modality of the candidate), which say what is
                compared. Of two similarities, the smaller one is returned.
            rows: The local anchors.
            candidates: The features of the candidates by modality, [candidates, width of that modality].
            duplicates: The result of `duplicates_of` for the candidates. With it, equal candidates have equal
                similarities to the bit; without it, rounding may differ.
        """
        found: list[Tensor] = []
        for (anchor, candidate), first in zip(similarities, duplicates or [None] * len(similarities), strict=True):
            similarity = matmul(self.own[anchor][rows], candidates[candidate].T)
            found.append(similarity if first is None else similarity[:, first])
        return found[0] if len(found) == 1 else found[0].minimum(found[1])


def duplicates_of(similarities: GuideSimilarities, candidates: Mapping[Modality, Tensor]) -> list[Tensor | None]:
    """Finds duplicates among the candidates, and returns a list with one result for each entry of `similarities`.

    An entry is (modality of the anchor, modality of the candidate), and the features of the second modality are
    searched. The result is a tensor that holds, for every candidate, the index of the first candidate with the same
    features; or None if all candidates differ (see `first_duplicates`).
    """
    return [first_duplicates(candidates[candidate]) for _, candidate in similarities]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Holds some texts of the global batch, and the guide features of the same samples.

    Guide features are the vectors that mining compares or, with a teacher, the features of the teacher.

    Attributes:
        columns: Global indices of the texts.
        text: [texts, width], in the type of the images.
        guides: Guide features of the samples by modality, [texts, width of that modality]; empty if there is neither
            mining nor a teacher.
    """

    columns: slice
    text: Tensor
    guides: Mapping[Modality, Tensor]


@dataclass(frozen=True, slots=True)
class ContrastiveBatch:
    """Describes the global batch on a rank that holds some of its rows and receives the others.

    Each loop over `blocks` is one pass over all texts of the global batch. An autograd function that needs the batch in
    backward saves the result of `pack`, and restores the batch with `unpack`.

    In the shapes, `local` is the number of rows of this rank, and `total` that of all ranks. An own pair is the image
    and the text of the same row. Known positives are the pairs that are positives without mining: own pairs and pairs
    of equal `ids`.

    Attributes:
        image: [local, width].
        text: [local, width]. In a sharded batch it has the type of the caller's texts, because texts are sent before
            they are converted. In a replicated batch it has the type of `image`.
        columns: The object that gathers the texts, and the features of `sent_guides`, from all ranks.
        sent_guides: Modalities whose `features` are sent in addition to the texts.
        scale: 0-dim, in the type of the scores: at least float32.
        objective: The loss as a function of the scores.
        bias: 0-dim, added to the scores; 0 if the objective has none.
        guide_scale: 0-dim; a teacher's scores are `guide_scale` times the cosines of `features`.
        ids: int64 [total], the id of each sample; None if only own pairs are known positives.
        mining: The rule by which further positives are mined; None if only known positives are positives.
        features: The vectors that mining compares, or those of the teacher (guide features); None if there is neither.
        feature_dtype: The type in which features are multiplied.
        partition: The division of the rows among the ranks.
        ranks: The ranks of the batch.
    """

    image: Tensor
    text: Tensor
    columns: ColumnAllGather
    sent_guides: tuple[Modality, ...]
    scale: Tensor
    objective: ContrastiveObjective
    bias: Tensor
    guide_scale: Tensor
    ids: Tensor | None
    mining: Mining | None
    features: GuideFeatures | None
    feature_dtype: torch.dtype
    partition: Partition
    ranks: Ranks

    def blocks(self, gradients: ColumnReduceScatter | None = None) -> Iterator[TextBlock]:
        """Yields all texts of the batch in blocks. The texts of this rank come first.

        This is a collective: all ranks must call it. `gradients` collects the gradients of the texts, as in
        `ColumnAllGather.blocks`.
        """
        for block in self.columns.blocks(gradients):
            yield self._text_block(block)

    def all_guides(self) -> Mapping[Modality, Tensor]:
        """Returns the guide features of the whole batch by modality, [total, width of the modality].

        Guide features are the vectors that mining compares or, with a teacher, the features of the teacher. The result
        contains each modality in which a rank needs the features of other ranks.

        This is a collective: all ranks must call it.
        """
        everything = ColumnBlock(slice(0, self.partition.total), self.columns.gather_all())
        return self._text_block(everything).guides

    @property
    def mined_by_score(self) -> bool:
        """Returns whether the cosine from which a pair's score is computed also decides whether the pair is mined."""
        if self.mining is None or self.features is None or self.mining.top_k is not None:
            return False
        return compares_modalities(self.mining) and self.features.are_embeddings

    def mined_lists(self, nearest: Callable[[GuideSimilarities], Tensor]) -> MinedLists | None:
        """Returns the candidates that are mined for each anchor by a rule with `top_k`; None without such a rule.

        This is a collective, because the lists of text anchors are gathered: all ranks must call it.

        Args:
            nearest: Returns the mined candidates of each local anchor, [local, at most top_k]. Its argument lists the
                similarities that decide: (modality of the anchor, modality of the candidate) of each.
        """
        if self.mining is None or self.mining.top_k is None:
            return None
        images, texts = IMAGE_ANCHORS[self.mining.guide], TEXT_ANCHORS[self.mining.guide]
        of_images = nearest(images)
        # A rank mines for its own rows. Directions that use the same similarities mine the same candidates.
        of_texts = of_images if texts == images else nearest(texts)
        return MinedLists(of_images, gather_rows(of_texts, self.partition, self.ranks), self.partition.first)

    def pack(self) -> tuple[ContrastiveBatch, tuple[Tensor, ...]]:
        """Returns a copy of this batch without its vectors, and the vectors themselves.

        The caller passes the vectors to `save_for_backward`. Autograd can then free them, and raises an error if one of
        them was changed before backward.
        """
        columns, gathered = self.columns.pack()
        own = {} if self.features is None else self.features.own
        nothing = self.image[:0].detach()
        packed = replace(
            self,
            image=nothing,
            text=nothing,
            columns=columns,
            features=None if self.features is None else replace(self.features, own=dict.fromkeys(own, nothing)),
        )
        return packed, (self.image, self.text, *own.values(), *gathered)

    def unpack(self, tensors: Sequence[Tensor]) -> ContrastiveBatch:
        """Returns a copy of this packed batch that holds `tensors`, the vectors that `pack` returned."""
        image, text, *others = tensors
        features = self.features
        if features is not None:
            features = replace(features, own=dict(zip(features.own, others, strict=False)))
            others = others[len(features.own) :]
        columns = self.columns.unpack(others)
        return replace(self, image=image, text=text, columns=columns, features=features)

    def _text_block(self, block: ColumnBlock) -> TextBlock:
        text, *sent = block.vectors
        guides: dict[Modality, Tensor] = {}
        if self.features is not None:
            # Where the texts themselves are the guide, they are not sent twice.
            guides = {"text": text.detach().to(self.feature_dtype)}
            guides |= {name: each.to(self.feature_dtype) for name, each in zip(self.sent_guides, sent, strict=True)}
        return TextBlock(block.columns, text.to(self.image.dtype), guides)


def sharded_batch(
    inputs: ContrastiveInputs, partition: Partition, ranks: Ranks, *, backward_communicates: bool, narrow: bool
) -> ContrastiveBatch:
    """Returns the batch in which this rank scores its own images against all texts.

    Only two kinds of vectors are sent between ranks: the texts, and the guide features that mining or the scores of a
    teacher need from other ranks. They are sent later, when a backend loops over the blocks. The ids are gathered here,
    so this is a collective: all ranks must call it.

    Args:
        inputs: The inputs of this rank.
        partition: The division of the rows among the ranks.
        ranks: The ranks of the batch.
        backward_communicates: Whether the ranks must exchange messages in backward. They must if the texts of at least
            one rank need a gradient. With the schedule `ring` they must if any input of at least one rank needs a
            gradient, because backward sends the texts again. If True, all ranks take part in backward, even a rank that
            needs no gradient itself.
        narrow: Whether half-precision vectors keep their type, for matrix units that add products in float32. If
            not, they are converted to float32.
    """
    # The images stay on this rank and are converted once. Texts are sent in their own type and converted on arrival.
    dtype_of = product_dtype if narrow else compute_dtype
    image = inputs.image.to(dtype_of(inputs.image, inputs.text)).contiguous()
    text = inputs.text.contiguous()
    # torch runs backward only if an input needs a gradient. This one makes the rank take part; nobody reads it.
    if backward_communicates and not text.requires_grad:
        text = text.detach().requires_grad_()
    # The modalities in which other ranks' guide features are compared with those of this rank.
    formula = inputs.formula
    needed: set[Modality] = set()
    if inputs.mining is not None:
        needed = modalities_to_gather(inputs.mining)
    elif formula.has_teacher:
        # Like the student, a teacher scores the images of this rank against all texts.
        needed = {"text"}
    # The embeddings of the texts are sent in any case.
    has_guide_text = inputs.guide_text is not None
    sent: tuple[Modality, ...] = tuple(
        name for name in MODALITIES if name in needed and (name == "image" or has_guide_text)
    )
    local = [text, *(inputs.guides()[name] for name in sent)]
    feature_dtype = dtype_of(*inputs.guides().values(), inputs.text)
    features = None
    if needed:
        own: dict[Modality, Tensor] = {
            name: each.detach().to(feature_dtype).contiguous() for name, each in inputs.guides().items()
        }
        features = GuideFeatures(own, inputs.guide_image is None and inputs.guide_text is None)
    dtype = compute_dtype(inputs.image, inputs.text)
    scale = scale_tensor(inputs.scale, image, dtype)
    return ContrastiveBatch(
        image=image,
        text=text,
        columns=ColumnAllGather(local, partition, ranks, inputs.schedule),
        sent_guides=sent,
        scale=scale,
        objective=formula,
        bias=scale_tensor(0.0 if inputs.bias is None else inputs.bias, image, dtype),
        guide_scale=(scale if inputs.guide_scale is None else scale_tensor(inputs.guide_scale, image, dtype)).detach(),
        ids=None if inputs.ids is None else gather_rows(inputs.ids, partition, ranks),
        mining=inputs.mining,
        features=features,
        feature_dtype=feature_dtype,
        partition=partition,
        ranks=ranks,
    )


def replicated_batch(inputs: ContrastiveInputs, partition: Partition, ranks: Ranks) -> ContrastiveBatch:
    """Returns the batch in which every rank holds all rows, for the reference.

    This is a collective: all ranks must call it.

    The caller of the loss averages the gradients over the ranks after backward. Each rank has only the gradients of its
    own rows, so `gather_replicated` multiplies them by the number of ranks, and the mean cancels this factor. The
    gradient of the scale needs no such factor, because each rank computes all of it.
    """
    dtype = compute_dtype(inputs.image, inputs.text)
    guided = {"guide_image": inputs.guide_image, "guide_text": inputs.guide_text}
    gathered = replace(
        inputs,
        image=gather_replicated(inputs.image, partition, ranks, dtype=dtype),
        text=gather_replicated(inputs.text, partition, ranks, dtype=dtype),
        ids=None if inputs.ids is None else gather_rows(inputs.ids, partition, ranks),
        **{name: None if each is None else gather_rows(each, partition, ranks) for name, each in guided.items()},
    )
    return sharded_batch(gathered, partition.on_one_rank(), SINGLE_RANK, backward_communicates=False, narrow=False)
