"""The share of the objective in a training step: towers forward and backward, with and without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from emocap_kernels import choose_region_backend, contrastive_loss, region_contrastive_loss
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness.measurement import Spread, ratios, spread

from . import pairs, record, regions
from .machine import Occasion, versions
from .outcome import Skipped, UnableError
from .pairs import Pairs
from .regions import SHARPNESS, Regions
from .size import Size
from .subject import leaf
from .tables import duration
from .timing import Call, clock_of, in_rounds
from .towers import Outputs, Shape, Towers
from .variants import LOCAL_THRESHOLD, THRESHOLD

WHAT = "share of the objective in a training step"

# Defaults of a run: tokens of the global text, of the summary and of a local sentence, and the weights of their terms.
_LENGTHS = (48, 77, 40)
_WEIGHTS = (0.5, 0.5, 1.0)
# How far towers with random weights, whose vectors are all alike, move the drawn vectors.
_NUDGE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One rank's step; `dtype` is that of the vectors that the loss is given, and half precision that of the towers."""

    rows: int
    sentences: int
    towers: Shape
    dtype: torch.dtype
    device: torch.device
    repeats: int

    @property
    def half(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Seconds of forward and backward, measured in common rounds, without an optimiser and without other ranks.

    Attributes:
        rows: Images of the rank.
        patches: Of an image.
        sentences: Of all images together.
        backend: What computed the local loss.
        repetitions: Readings of each.
        step: Towers and objective.
        towers: Without an objective.
        objective: The global, the summary and the local loss, mined by thresholds, without the towers.
        local: The local loss of them.
        share: Of the objective in the step of the same round.
    """

    rows: int
    patches: int
    sentences: int
    backend: str
    repetitions: int
    step: Spread
    towers: Spread
    objective: Spread
    local: Spread
    share: Spread

    def line(self, setting: Setting, about: Occasion) -> str:
        shape: dict[str, Any] = {**asdict(setting.towers), "dtype": str(setting.dtype).removeprefix("torch.")}
        packages = {**versions("timm"), **versions("transformers")}
        return json.dumps({"what": WHAT, **asdict(self), **shape, "versions": packages, **asdict(about)})

    def progress(self) -> str:
        parts = {"step": self.step, "towers": self.towers, "objective": self.objective, "local": self.local}
        said = "  ".join(f"{name} {duration(seconds.median)}" for name, seconds in parts.items())
        range_ = f"{self.share.low_quartile:.2%} to {self.share.high_quartile:.2%}"
        return f"{self.rows} x {self.patches} x {self.sentences}  {said}  share {self.share.median:.2%} ({range_})"


def share(setting: Setting, about: Occasion, out: Path) -> Share:
    """Measures one step and appends it to `out`.

    Raises:
        UnableError: If it does not run.
    """
    rounds = _Rounds(setting)
    taken = in_rounds(rounds.calls(), clock_of(setting.device), repeats=setting.repeats)
    readings = {name: _readings(name, each) for name, each in taken.items()}
    found = Share(
        rows=setting.rows,
        patches=rounds.regions.patches.shape[1],
        sentences=setting.sentences,
        backend=choose_region_backend(rounds.regions.patches, rounds.regions.sentences).backend,
        repetitions=setting.repeats,
        **{name: spread(each) for name, each in readings.items()},
        share=spread(ratios(readings["objective"], readings["step"])),
    )
    record.append(out, found.line(setting, about))
    return found


def _readings(name: str, taken: list[float] | Skipped) -> list[float]:
    if isinstance(taken, Skipped):
        raise UnableError(f"{name}: {taken.reason}")
    return taken


class _Rounds:
    """Towers, their inputs, and the vectors of a batch half way through training.

    Such vectors, moved a little by what the towers give, are what the objective sees: between vectors of random towers
    everything would be mined.
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
        """By what they measure; each forward and backward."""
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
        """Unit vectors in the type of `drawn`."""
        return normalize(drawn.detach().float() + _NUDGE * vectors.float(), dim=-1).to(drawn.dtype)


def _objective(whole: Pairs, summary: Tensor, local: Regions) -> Tensor:
    """The weighted sum of the three terms; the texts of `whole` and the summaries [rows, width] share their images."""
    of_whole, of_summary, of_local = _WEIGHTS
    terms = [weight * _global(whole, text) for weight, text in ((of_whole, whole.text), (of_summary, summary))]
    return torch.stack([*terms, of_local * _local(local)]).sum()


def _global(batch: Pairs, text: Tensor) -> Tensor:
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
