"""Counts the FLOP and the received bytes of one rank in a step, by the formulas of docs/method.md, sections 5 and 6.

This module does not compute times. `step.py` divides the counts by the rates of a device and of a network
(`fabric.py`).
"""

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
# Numbers of matrix products of a term that is aligned with images, forward and backward (docs/method.md, section 5).
# The first number is for the backend `reference`, and the second for the other backends. The third says how often the
# other backends compute the scores, and with them the products of a guide. An objective that is not listed is assumed
# to cost as much as InfoNCE.
_PRODUCTS: Mapping[str, tuple[int, int, int]] = {
    "infonce": (3, 4, 2),
    "mil_nce": (3, 4, 2),
    "sigmoid": (3, 3, 1),
    "soft": (4, 6, 0),
}
# Numbers of further products that a guide of mining needs: one for each similarity that it compares, except "joint",
# whose similarities are the scores.
_GUIDES = {"counterpart": 2, "consensus": 2, "text": 1, "image": 1, "joint": 0}
_IMAGE_GUIDES = {"counterpart", "consensus", "image"}

Schedule = Literal["gather", "hierarchical", "ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Describes the work of one rank in a step, if every rank has `rows` rows.

    Attributes:
        rows: Number of samples of each rank.
        embedding: Size of the embeddings.
        vector_bytes: Bytes of one element of an exchanged vector.
        texts: Number of text vectors that are exchanged for each row.
        guides: Number of image vectors that are exchanged for each row. A term of the loss needs them if it compares
            images to mine positives, or if it learns from a teacher. Vectors of a teacher are assumed to have the size
            of the embeddings.
        products: Number of matrix products of the rank's images with the texts of all ranks. Each product has
            `2 * rows * (ranks * rows) * embedding` FLOP, where `ranks` is the world size.
        patch_products: FLOP of the local loss, if it compares each text with the patches of all images; else 0. The
            unit is the FLOP of one matrix product that `products` counts.
        own_products: FLOP of the local loss, if it compares each text only with the patches of the text's own image;
            else 0. The unit is `2 * rows * embedding` FLOP.
        parameters: Number of parameters of the model.
        trained: Number of those parameters that are trained. Their gradients are reduced in float32.
        zero_stage: Stage of ZeRO.
        schedule: The schedule by which the ranks exchange embeddings.
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
    trained: int
    zero_stage: int
    schedule: Literal["auto"] | Schedule = "auto"

    @classmethod
    def of(cls, config: Config, rows: int, *, parameters: int, trained: int, patches: int, half: bool) -> "Workload":
        """Returns the work of a rank in the run with this config.

        Args:
            config: The config of the run.
            rows: Number of samples of each rank.
            parameters: Number of parameters of the model.
            trained: Number of those parameters that are trained.
            patches: Number of patches of an image, after patch dropout.
            half: Whether vectors are exchanged as bfloat16.
        """
        settings = config.objective
        parts = active_parts(settings.weights)
        # The number of texts and the kind of the loss, for each part that is aligned with images.
        with_image: list[tuple[int, Kind]] = [
            (part.texts_per_image, settings.kind_of(part.name)) for part in parts if part.aligned_with == "image"
        ]
        with_patches = sum(part.texts_per_image for part in parts if part.aligned_with == "patches")
        pairs, whole_batch = patches * with_patches, settings.scope == "batch"
        return cls(
            rows=rows,
            embedding=config.model.embedding,
            vector_bytes=2 if half else FLOAT,
            texts=sum(texts for texts, _ in with_image) + (with_patches if whole_batch else 0),
            guides=sum(texts * _guides(settings, kind) for texts, kind in with_image),
            products=sum(texts * _products(settings, kind) for texts, kind in with_image),
            patch_products=pairs * _patch_products(settings, patches) if whole_batch else 0,
            own_products=0 if whole_batch else 6 * pairs,
            parameters=parameters,
            trained=trained,
            zero_stage=config.engine.zero_stage,
            schedule=settings.schedule,
        )

    def loss_flops(self, ranks: int) -> float:
        """Returns the FLOP of the loss on one rank, forward and backward, if the job has `ranks` ranks."""
        with_all_ranks = ranks * (self.products + self.patch_products)
        return 2.0 * self.rows * self.embedding * (self.rows * with_all_ranks + self.own_products)

    def route(self, nodes: int) -> Schedule:
        """Returns the schedule by which the ranks of a job on `nodes` nodes exchange embeddings.

        If the setting is "auto", the schedule is "hierarchical" on several nodes and "gather" on one node.
        """
        if self.schedule != "auto":
            return self.schedule
        return "hierarchical" if nodes > 1 else "gather"


def _products(settings: ObjectiveConfig, kind: Kind) -> int:
    """Returns the number of matrix products that one term of the loss needs, forward and backward.

    The term compares whole images with texts. `kind` is the name of its objective, such as "infonce". The products by
    which positives are mined are included.
    """
    reference, others, sweeps = _PRODUCTS.get(kind, _PRODUCTS["infonce"])
    base, again = (reference, 1) if settings.backend == "reference" else (others, sweeps)
    if settings.mining is None or _learns_from_teacher(kind):
        return base
    # What a threshold mines is found again in backward. What `top_k` mines is kept as a list.
    by_threshold = settings.mining.threshold is not None
    return base + _GUIDES[settings.mining.guide] * (again if by_threshold else 1)


def _guides(settings: ObjectiveConfig, kind: Kind) -> int:
    """Returns how many image vectors of each row the ranks exchange for one term of the loss.

    `kind` is the name of the term's objective. The result is 1 if the term learns from a teacher, or if the mining of
    its positives compares images; else 0.
    """
    if _learns_from_teacher(kind):
        return 1
    return int(settings.mining is not None and settings.mining.guide in _IMAGE_GUIDES)


def _learns_from_teacher(kind: Kind) -> bool:
    return objective_of(kind).has_teacher


def _patch_products(settings: ObjectiveConfig, patches: int) -> int:
    if settings.backend == "reference":
        return 3
    # Above 256 patches, the fused backend computes each window of patches twice in backward (decision 12).
    return 5 if patches > 256 and settings.backend != "chunked" else 4


@dataclass(frozen=True, slots=True)
class Received:
    """Holds the numbers of bytes and messages that one rank receives in a step.

    They are counted separately for messages inside its node (`inside_...`) and between nodes (`between_...`).
    """

    inside_bytes: float
    between_bytes: float
    inside_messages: float
    between_messages: float

    @property
    def bytes(self) -> float:
        """Returns the number of bytes that the rank receives from all ranks."""
        return self.inside_bytes + self.between_bytes

    def seconds(self, fabric: Fabric) -> float:
        """Returns the seconds that the messages take one after another, including their latencies."""
        return (
            self.inside_bytes / fabric.inside.bytes_per_s
            + self.between_bytes / fabric.between.bytes_per_s
            + self.inside_messages * fabric.inside.latency_s
            + self.between_messages * fabric.between.latency_s
        )


def vectors(work: Workload, ranks: int, fabric: Fabric) -> Received:
    """Returns the bytes and messages that a rank receives in one step for the loss and its gradients.

    The rank receives text vectors, image vectors (`Workload.guides`), and gradients of text vectors (docs/method.md,
    section 6). The loss also exchanges less than 100 bytes of other values for each text, which are not counted.
    """
    nodes, here = fabric.nodes(ranks), min(ranks, fabric.ranks_per_node)
    route = work.route(nodes)
    far = ranks - here  # Ranks on other nodes.
    # With "hierarchical", one rank of each other node sends directly, and this node's ranks forward the rest.
    crossing = nodes - 1 if route == "hierarchical" else far
    # Inside a node, a rank receives the vectors of the other ranks, and vectors that they forward from other nodes.
    near = here - 1 + (far - crossing)
    # A ring sends the vectors again in backward. The gradients of the texts are sent once in each schedule.
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
    """Returns the bytes and messages that a rank receives in one step for the reduction of the gradients.

    The gradients are reduced first inside each node and then between nodes. With ZeRO, the result includes the
    all-gathers of the parameters.
    """
    nodes, here = fabric.nodes(ranks), min(ranks, fabric.ranks_per_node)
    # The gradients are transferred once by a reduce-scatter, and the new values of the parameters once by an
    # all-gather. ZeRO stage 3 gathers all parameters, also the frozen ones, once forward and once backward.
    trained, whole = work.trained * FLOAT, work.parameters * FLOAT
    transfers = (trained, whole, whole) if work.zero_stage == 3 else (trained, trained)
    size, messages = sum(transfers), sum(-(-each // BUCKET_BYTES) for each in transfers)
    return Received(
        inside_bytes=size * (here - 1) / here,
        between_bytes=size / here * (nodes - 1) / nodes,
        inside_messages=messages * (here - 1),
        between_messages=messages * (nodes - 1),
    )
