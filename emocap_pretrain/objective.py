"""The total loss of docs/method.md: global, summary and local alignment, weighted, and what is logged of each."""

from collections.abc import Callable
from dataclasses import dataclass

import emocap_kernels
import torch
from emocap_kernels import Mining
from emocap_kernels.result import LossResult
from torch import Tensor
from torch.distributed import ProcessGroup

from emocap_pretrain.batch import Batch
from emocap_pretrain.config.objective import Objective as Settings
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import Embeddings


@dataclass(frozen=True, slots=True)
class Terms:
    """The scalar to differentiate, and detached scalars by name, equal on all ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """Weighs the terms that the settings switch on; mining starts after its warm-up."""

    settings: Settings
    group: ProcessGroup | None
    vectors: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: Config, group: ProcessGroup | None) -> "Objective":
        return cls(config.objective, group, vector_dtype(config))

    def __call__(self, embeddings: Embeddings, batch: Batch, step: int) -> Terms:
        """Terms of the global batch.

        Args:
            embeddings: This rank's rows.
            batch: The batch they come from.
            step: Steps done before this one; decides whether mining has begun.
        """
        mined = step >= self.settings.mining_warmup_steps
        weights = {"global": self.settings.whole, "summary": self.settings.summary, "local": self.settings.local}
        terms: dict[str, Callable[[], LossResult]] = {
            "global": lambda: self._aligned(embeddings, embeddings.whole, batch.whole_ids, mined),
            "summary": lambda: self._aligned(embeddings, embeddings.summary, batch.summary_ids, mined),
            "local": lambda: self._local(embeddings, batch.owner, mined),
        }
        results = {name: term() for name, term in terms.items() if weights[name] > 0}
        loss = torch.stack([weights[name] * result.loss for name, result in results.items()]).sum()
        metrics = {"loss": loss.detach()}
        for name, result in results.items():
            metrics |= _metrics(name, result)
        return Terms(loss, metrics)

    def _aligned(self, embeddings: Embeddings, text: Tensor, ids: Tensor, mined: bool) -> LossResult:
        mining = self.settings.mining
        return emocap_kernels.contrastive_loss(
            embeddings.image.to(self.vectors),
            text.to(self.vectors),
            embeddings.scale,
            mining=Mining(**mining.model_dump()) if mining and mined else None,
            ids=ids if self.settings.known_positives else None,
            group=self.group,
            schedule=self.settings.schedule,
            backend=self.settings.backend,
        )

    def _local(self, embeddings: Embeddings, owner: Tensor, mined: bool) -> LossResult:
        mining = self.settings.local_mining
        return emocap_kernels.region_contrastive_loss(
            embeddings.patches.to(self.vectors),
            embeddings.sentences.to(self.vectors),
            owner,
            embeddings.local_scale,
            sharpness=self.settings.sharpness,
            scope=self.settings.scope,
            mining=Mining(guide="text", **mining.model_dump()) if mining and mined else None,
            group=self.group,
            schedule=self.settings.schedule,
            backend=self.settings.backend,
        )


def vector_dtype(config: Config) -> torch.dtype:
    """Of the unit vectors that the losses multiply: products are added in float32 whatever it is."""
    chosen = config.engine.precision if config.objective.vectors == "auto" else config.objective.vectors
    return torch.bfloat16 if chosen == "bf16" else torch.float32


def _metrics(name: str, result: LossResult) -> dict[str, Tensor]:
    image_to_text, text_to_image = result.recall_at_1
    return {
        f"{name}/loss": result.loss.detach(),
        f"{name}/image_to_text": result.image_to_text,
        f"{name}/text_to_image": result.text_to_image,
        f"{name}/recall_at_1_image_to_text": image_to_text,
        f"{name}/recall_at_1_text_to_image": text_to_image,
        f"{name}/positives": result.positives,
    }
