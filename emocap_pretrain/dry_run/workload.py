"""Counts what one rank computes and receives in a step, by the formulas of docs/method.md, sections 5 and 6."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from emocap_kernels.contrastive.objectives import objective_of

from emocap_pretrain.config.objective import Kind, ObjectiveConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.parts import active_parts
from emocap_pretrain.dry_run.fabric import Fabric

FLOAT = 4
BUCKET_BYTES = 50_000_000 * FLOAT  # Size of one gradient reduction.
# Matrix products of a term that is aligned with images, forward and backward (docs/method.md, section 5): those of the
# reference, those of the other backends, and how often the others compute the scores and so the products of a guide.
# Objectives that are not listed are assumed to cost as much as InfoNCE.
_PRODUCTS: Mapping[str, tuple[int, int, int]] = {
    "infonce": (3, 4, 2),
    "mil_nce": (3, 4, 2),
    "sigmoid": (3, 3, 1),
    "soft": (4, 6, 0),
}
# Further products of each guide that compares something other than the scores.
_GUIDES = {"counterpart": 2, "consensus": 2, "text": 1, "image": 1, "joint": 0}
_IMAGE_GUIDES = {"counterpart", "consensus", "image"}

Schedule = Literal["gather", "hierarchical", "ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Describes the work of one rank in a step, if every rank has `rows` rows.

    Attributes:
        rows: Samples of each rank.
        embedding: Size of the embeddings.
        vector_bytes: Bytes of one element of a vector.
        texts: Text vectors that are exchanged for each row.
        guides: Image vectors that are exchanged for each row because a guide compares images. Those of a teacher are
            assumed to be as wide as the embeddings.
        products: Products of the rank's images with the texts of all ranks, each of 2 rows x all x embedding FLOP.
        patch_products: Products of the rank's patches with the texts of all ranks, for each patch and text of a row.
        own_products: The same, if a text is compared with the patches of its own image alone.
        parameters: Parameters of the model, reduced and updated in float32.
        zero_stage: Stage of ZeRO.
        schedule: How embeddings are exchanged.
    """

    rows: int
    embedding: int
    vector_bytes: int
    texts: int
    guides: int
    products: int
    patch_products: int
    own_products: int
    parameters: int
    zero_stage: int
    schedule: Literal["auto", "gather", "hierarchical", "ring"] = "auto"

    @classmethod
    def of(cls, config: Config, rows: int, *, parameters: int, patches: int, half: bool) -> "Workload":
        """Returns the work of a rank.

        Args:
            config: The run.
            rows: Samples of each rank.
            parameters: Parameters of the model.
            patches: Patches of an image, after patch dropout.
            half: Whether vectors are exchanged as bfloat16.
        """
        settings = config.objective
        parts = active_parts(settings.weights)
        with_image = sum(part.texts_per_image for part in parts if part.aligned_with == "image")
        with_patches = sum(part.texts_per_image for part in parts if part.aligned_with == "patches")
        pairs, whole_batch = patches * with_patches, settings.scope == "batch"
        return cls(
            rows=rows,
            embedding=config.model.embedding,
            vector_bytes=2 if half else FLOAT,
            texts=with_image + (with_patches if whole_batch else 0),
            guides=sum(
                part.texts_per_image * _guides(settings, settings.kind_of(part.name))
                for part in parts
                if part.aligned_with == "image"
            ),
            products=sum(
                part.texts_per_image * _products(settings, settings.kind_of(part.name))
                for part in parts
                if part.aligned_with == "image"
            ),
            patch_products=pairs * _patch_products(settings, patches) if whole_batch else 0,
            own_products=0 if whole_batch else 6 * pairs,
            parameters=parameters,
            zero_stage=config.engine.zero_stage,
            schedule=settings.schedule,
        )

    def loss_flops(self, ranks: int) -> float:
        """Returns the FLOP of one rank, forward and backward. It grows linearly with the number of ranks."""
        with_all_ranks = ranks * (self.products + self.patch_products)
        return 2.0 * self.rows * self.embedding * (self.rows * with_all_ranks + self.own_products)

    def route(self, nodes: int) -> Schedule:
        """Returns the schedule that `auto` selects."""
        if self.schedule != "auto":
            return self.schedule
        return "hierarchical" if nodes > 1 else "gather"

    @property
    def gradient_passes(self) -> int:
        """Transfers of all parameters in a step: reduce-scatter and all-gather; in stage 3 one more all-gather."""
        return 3 if self.zero_stage == 3 else 2


def _products(settings: ObjectiveConfig, kind: Kind) -> int:
    """Returns the products of one term that is aligned with images: both directions, forward and backward."""
    reference, others, sweeps = _PRODUCTS.get(kind, _PRODUCTS["infonce"])
    base, again = (reference, 1) if settings.backend == "reference" else (others, sweeps)
    if settings.mining is None or _learns_from_teacher(kind):
        return base
    by_threshold = settings.mining.threshold is not None
    return base + _GUIDES[settings.mining.guide] * (again if by_threshold else 1)


def _guides(settings: ObjectiveConfig, kind: Kind) -> int:
    """Returns how many image vectors of each row are exchanged for one term."""
    if _learns_from_teacher(kind):
        return 1
    return int(settings.mining is not None and settings.mining.guide in _IMAGE_GUIDES)


def _learns_from_teacher(kind: Kind) -> bool:
    return objective_of(kind).has_teacher


def _patch_products(settings: ObjectiveConfig, patches: int) -> int:
    if settings.backend == "reference":
        return 3
    return 5 if patches > 256 and settings.backend != "chunked" else 4


@dataclass(frozen=True, slots=True)
class Received:
    """Holds the bytes and messages that one rank receives in a step, inside its node and between nodes."""

    inside_bytes: float
    between_bytes: float
    inside_messages: float
    between_messages: float

    @property
    def bytes(self) -> float:
        """All bytes that the rank receives."""
        return self.inside_bytes + self.between_bytes

    def seconds(self, fabric: Fabric) -> float:
        """Returns the time if messages are received one after another; latency counts once for each message."""
        return (
            self.inside_bytes / fabric.inside.bytes_per_s
            + self.between_bytes / fabric.between.bytes_per_s
            + self.inside_messages * fabric.inside.latency_s
            + self.between_messages * fabric.between.latency_s
        )


def vectors(work: Workload, ranks: int, fabric: Fabric) -> Received:
    """Returns what a rank receives for the loss: texts, guides and their gradients (docs/method.md, section 6).

    The further numbers of each column, under 100 bytes, are not counted.
    """
    nodes, here = fabric.nodes(ranks), min(ranks, fabric.ranks_per_node)
    route = work.route(nodes)
    far = ranks - here  # Ranks on other nodes.
    crossing = nodes - 1 if route == "hierarchical" else far
    # Inside a node: what the other ranks of the node have, and what they pass on from other nodes.
    near = here - 1 + (far - crossing)
    there = 2 if route == "ring" else 1
    journeys = there * (work.texts + work.guides) + work.texts
    row_bytes = work.rows * work.embedding * work.vector_bytes
    messages = there + 1
    return Received(
        inside_bytes=journeys * near * row_bytes,
        between_bytes=journeys * crossing * row_bytes,
        inside_messages=messages * (here - 1 + (nodes - 1 if route == "hierarchical" else 0)),
        between_messages=messages * crossing,
    )


def gradients(work: Workload, ranks: int, fabric: Fabric) -> Received:
    """Returns what a rank receives for the gradients, if NCCL reduces them inside nodes and then between nodes."""
    nodes, here = fabric.nodes(ranks), min(ranks, fabric.ranks_per_node)
    size, passes = work.parameters * FLOAT, work.gradient_passes
    messages = passes * -(-size // BUCKET_BYTES)
    return Received(
        inside_bytes=passes * size * (here - 1) / here,
        between_bytes=passes * size / here * (nodes - 1) / nodes,
        inside_messages=messages * (here - 1),
        between_messages=messages * (nodes - 1),
    )
