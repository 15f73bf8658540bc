"""Measures the share of the objective in a training step: towers forward and backward, with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from emocap_kernels import choose_region_backend, contrastive_loss, region_contrastive_loss
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete

from . import pairs, regions
from .device import PACKAGES, Call, clock_of, in_rounds
from .pairs import PairBatch
from .regions import SHARPNESS, Regions
from .size import Size
from .subject import leaf
from .towers import Outputs, Towers, TowerShape
from .variants import LOCAL_THRESHOLD, THRESHOLD

WHAT = "share of the objective in a training step"

# Defaults of a run: tokens of the global text, of the summary and of a local sentence, and the weights of their terms.
_LENGTHS = (48, 77, 40)
_WEIGHTS = (0.5, 0.5, 1.0)
# How far the outputs of towers with random weights, which are nearly equal, move the drawn vectors.
_SHIFT = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The setting of a step of one rank. `dtype` is the type of the vectors, and if it is a half also of the towers."""

    rows: int
    sentences: int
    towers: TowerShape
    dtype: torch.dtype
    device: torch.device
    repeats: int

    @property
    def half(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)


def share(setting: Setting, about: Occasion) -> Measurement:
    """Measures forward and backward of one step in common rounds, without an optimizer and without other ranks.

    The value is the time of towers and objective together. The record also has the times of the towers alone, of the
    objective alone (the global, the summary and the local loss, mined by thresholds), of its local loss, and the share
    of the objective in the step of the same round.

    Raises:
        ValueError: If one of them does not run.
    """
    rounds = _Rounds(setting)
    readings = complete(in_rounds(rounds.calls(), clock_of(setting.device), repeats=setting.repeats))
    regions_ = rounds.regions
    return measured(
        about,
        readings["step"],
        what=WHAT,
        contender=choose_region_backend(regions_.patches, regions_.sentences).backend,
        setting={
            "rows": setting.rows,
            "patches": regions_.patches.shape[1],
            "sentences": setting.sentences,
            **asdict(setting.towers),
            "dtype": str(setting.dtype).removeprefix("torch."),
        },
        unit="s",
        ratios={"objective in the step": ratios(readings["objective"], readings["step"])},
        more={f"{name}_s": spread(readings[name]) for name in ("towers", "objective", "local")},
        versions=versions((*PACKAGES, "timm", "transformers")),
    )


class _Rounds:
    """Towers, their inputs, and the vectors of a batch as in the middle of training.

    The objective gets these vectors, moved a little by the outputs of the towers. Outputs of random towers are so
    similar that all pairs would be mined.
    """

    def __init__(self, setting: Setting) -> None:
        device, rows = setting.device, setting.rows
        self._setting = setting
        self._towers = Towers(setting.towers).to(device).train()
        self._images = torch.randn(rows, 3, self._towers.pixels, self._towers.pixels, device=device)
        counts = (rows, rows, setting.sentences)
        self._texts = [self._towers.tokens(each, length, device) for each, length in zip(counts, _LENGTHS, strict=True)]
        self._parameters = [each for each in self._towers.parameters() if each.requires_grad]
        with torch.no_grad():
            patches = self._embedded().patches.shape[1]
        size = Size(rows, setting.towers.embedding, patches, setting.sentences)
        self.pairs = pairs.draw(size, setting.dtype, device)
        self.summary = leaf(self.pairs.text, setting.dtype)
        self.regions = regions.draw(size, setting.dtype, device)

    def calls(self) -> Mapping[str, Call]:
        """Returns the calls by the name of what they measure. Each runs forward and backward."""
        return {"step": self._step, "towers": self._alone, "objective": self._objective, "local": self._local}

    def _step(self) -> object:
        outputs = self._embedded()
        whole, summary, sentences = outputs.texts
        moved = replace(
            self.pairs, image=self._moved(self.pairs.image, outputs.image), text=self._moved(self.pairs.text, whole)
        )
        local = replace(
            self.regions,
            patches=self._moved(self.regions.patches, outputs.patches),
            sentences=self._moved(self.regions.sentences, sentences),
        )
        loss = _objective(moved, self._moved(self.summary, summary), local)
        return torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _alone(self) -> object:
        outputs = self._embedded().tensors
        upstream = [torch.ones_like(each) for each in outputs]
        return torch.autograd.grad(outputs, self._parameters, upstream, allow_unused=True)

    def _objective(self) -> object:
        drawn = (self.pairs.image, self.pairs.text, self.summary, self.regions.patches, self.regions.sentences)
        scales = (self.pairs.scale, self.regions.scale)
        return torch.autograd.grad(_objective(self.pairs, self.summary, self.regions), [*drawn, *scales])

    def _local(self) -> object:
        return torch.autograd.grad(
            _local(self.regions), [self.regions.patches, self.regions.sentences, self.regions.scale]
        )

    def _embedded(self) -> Outputs:
        kind = self._setting.device.type
        with torch.autocast(kind, self._setting.dtype if self._setting.half else None, enabled=self._setting.half):
            return self._towers(self._images, self._texts)

    def _moved(self, drawn: Tensor, vectors: Tensor) -> Tensor:
        """Returns unit vectors in the type of `drawn`."""
        return normalize(drawn.detach().float() + _SHIFT * vectors.float(), dim=-1).to(drawn.dtype)


def _objective(whole: PairBatch, summary: Tensor, local: Regions) -> Tensor:
    """Returns the weighted sum of the three terms. Texts of `whole` and `summary` [rows, width] share the images."""
    of_whole, of_summary, of_local = _WEIGHTS
    terms = [weight * _global(whole, text) for weight, text in ((of_whole, whole.text), (of_summary, summary))]
    return torch.stack([*terms, of_local * _local(local)]).sum()


def _global(batch: PairBatch, text: Tensor) -> Tensor:
    return contrastive_loss(batch.image, text, batch.scale, mining=THRESHOLD.mining).loss


def _local(batch: Regions) -> Tensor:
    return region_contrastive_loss(
        batch.patches,
        batch.sentences,
        batch.owner,
        batch.scale,
        sharpness=SHARPNESS,
        mining=LOCAL_THRESHOLD.mining,
    ).loss
