"""Measures the share of the objective (the weighted sum of all losses) in the time of a training step.

A step here is the forward and backward pass of both towers and of the objective. The towers and the objective are also
measured alone. The towers have random weights and cost the same as those of a training step. timm and transformers are
imported only when the towers are built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete

from .batches import PairBatch, Regions, draw_pairs, draw_regions
from .device import PACKAGES, UnableError, clock_of, dtype_name, in_rounds
from .subject import Call, Size, leaf
from .subjects import LOCAL_THRESHOLD, PLAIN, THRESHOLD

WHAT = "share of the objective in a training step"

# The defaults of a run: tokens of the global text, of the summary and of a local sentence, and weights of their terms.
_LENGTHS = (48, 77, 40)
_WEIGHTS = (0.5, 0.5, 1.0)
# The factor of the outputs of the towers in the vectors of the objective (see `_Rounds`).
_SHIFT = 1e-2
_VOCABULARY = 8192
_HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Describes the image tower by its name in timm, and the text tower by its number of layers and its width.

    Both towers have the same embedding size.
    """

    image: str
    text_layers: int
    text_width: int
    embedding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSetting:
    """The setting of a step of one rank.

    `rows` is the number of images, and `sentences` the number of sentences of all images together. `dtype` is that of
    the embeddings. If it is half precision, the towers are computed in this dtype as well (autocast). `repeats` is the
    number of readings.
    """

    rows: int
    sentences: int
    towers: TowerShape
    dtype: torch.dtype
    device: torch.device
    repeats: int

    @property
    def half(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)


def share(setting: StepSetting, about: Occasion) -> Measurement:
    """Measures the forward and backward pass of one step, without an optimizer and without other ranks.

    The value of the returned record is the time of the whole step: the towers, and the objective. The objective is the
    weighted sum of the global, the summary and the local loss, with positives mined by thresholds. The record also has
    the times of the towers alone, of the objective alone and of the local loss alone. Each round measures all four
    once, one after another. The ratio in the record is the time of the objective divided by that of the whole step.

    Raises:
        ValueError: If one of these four times cannot be measured.
    """
    rounds = _Rounds(setting)
    readings = complete(in_rounds(rounds.calls(), clock_of(setting.device), repeats=setting.repeats))
    return measured(
        about,
        readings["step"],
        what=WHAT,
        contender=rounds.regions.backend,
        setting={
            "rows": setting.rows,
            "patches": rounds.regions.patches.shape[1],
            "sentences": setting.sentences,
            **asdict(setting.towers),
            "dtype": dtype_name(setting.dtype),
        },
        unit="s",
        ratios={"objective in the step": ratios(readings["objective"], readings["step"])},
        more={f"{name}_s": spread(readings[name]) for name in ("towers", "objective", "local")},
        versions=versions((*PACKAGES, "timm", "transformers")),
    )


class _Rounds:
    """The towers, their inputs, and random embeddings that resemble those in the middle of training.

    In a step, the objective gets these embeddings plus a small multiple of the outputs of the towers, so that gradients
    reach the towers. It does not get the outputs alone, because those of random towers are so similar to each other
    that all pairs would be mined.
    """

    def __init__(self, setting: StepSetting) -> None:
        device, rows = setting.device, setting.rows
        self._setting = setting
        self._towers = _Towers(setting.towers).to(device).train()
        self._images = torch.randn(rows, 3, self._towers.pixels, self._towers.pixels, device=device)
        counts = (rows, rows, setting.sentences)
        self._texts = [
            torch.randint(_VOCABULARY, (texts, length), device=device)
            for texts, length in zip(counts, _LENGTHS, strict=True)
        ]
        self._parameters = [each for each in self._towers.parameters() if each.requires_grad]
        with torch.no_grad():
            _, patches, *_ = self._embedded()
        size = Size(rows, setting.towers.embedding, patches.shape[1], setting.sentences)
        self.pairs = draw_pairs(size, setting.dtype, device)
        self.summary = leaf(self.pairs.text, setting.dtype)
        self.regions = draw_regions(size, setting.dtype, device)

    def calls(self) -> Mapping[str, Call]:
        """Returns the functions to time, by the name of the part that they run forward and backward."""
        return {"step": self._step, "towers": self._alone, "objective": self._objective, "local": self._local}

    def _step(self) -> object:
        image, patches, text, summary, sentences = self._embedded()
        moved = replace(self.pairs, image=_moved(self.pairs.image, image), text=_moved(self.pairs.text, text))
        local = replace(
            self.regions,
            patches=_moved(self.regions.patches, patches),
            sentences=_moved(self.regions.sentences, sentences),
        )
        loss = _objective(moved, _moved(self.summary, summary), local)
        return torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _alone(self) -> object:
        outputs = self._embedded()
        upstream = [torch.ones_like(each) for each in outputs]
        return torch.autograd.grad(outputs, self._parameters, upstream, allow_unused=True)

    def _objective(self) -> object:
        leaves = [*self.pairs.leaves(PLAIN), self.summary, *self.regions.leaves(PLAIN)]
        return torch.autograd.grad(_objective(self.pairs, self.summary, self.regions), leaves)

    def _local(self) -> object:
        return torch.autograd.grad(_local_loss(self.regions), self.regions.leaves(PLAIN))

    def _embedded(self) -> list[Tensor]:
        """Returns the outputs of the towers, computed in half precision if the setting asks for it."""
        kind = self._setting.device.type
        with torch.autocast(kind, self._setting.dtype if self._setting.half else None, enabled=self._setting.half):
            return self._towers(self._images, self._texts)


def _moved(drawn: Tensor, vectors: Tensor) -> Tensor:
    """Returns the drawn vectors, moved a little towards `vectors`, as unit vectors of the same dtype."""
    return normalize(drawn.detach().float() + _SHIFT * vectors.float(), dim=-1).to(drawn.dtype)


def _objective(batch: PairBatch, summary: Tensor, local: Regions) -> Tensor:
    """Returns the weighted sum of the global, the summary and the local loss.

    `summary` [rows, width] holds the embedding of each image's summary text.
    """
    of_whole, of_summary, of_local = _WEIGHTS
    terms = [
        of_whole * batch.loss(mining=THRESHOLD.mining),
        of_summary * replace(batch, text=summary).loss(mining=THRESHOLD.mining),
        of_local * _local_loss(local),
    ]
    return torch.stack(terms).sum()


def _local_loss(batch: Regions) -> Tensor:
    """Returns the local loss, with positives that are mined by a threshold."""
    return batch.loss(mining=LOCAL_THRESHOLD.mining)


class _Towers(nn.Module):
    """An image tower, and one text tower for all groups of texts. Their outputs are not normalised."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.image = _image_tower(shape.image)
        self.text = _text_tower(shape.text_layers, shape.text_width)
        width: int = self.image.num_features
        self.to_image, self.to_patch = (nn.Linear(width, shape.embedding, bias=False) for _ in range(2))
        self.to_text = nn.Linear(shape.text_width, shape.embedding, bias=False)

    @property
    def pixels(self) -> int:
        return self.image.pretrained_cfg["input_size"][-1]

    def forward(self, images: Tensor, texts: Sequence[Tensor]) -> list[Tensor]:
        """Embeds images [rows, 3, pixels, pixels], and several groups of token ids, each int64 [texts, length].

        Returns:
            The images [rows, embedding], their patches [rows, patches, embedding], and the texts of each group,
            [texts, embedding].
        """
        features = self.image.forward_features(images)
        pooled = self.image.forward_head(features, pre_logits=True)
        patches = features[:, self.image.num_prefix_tokens :]
        found = [self.to_text(self.text(input_ids=ids).last_hidden_state.mean(1)) for ids in texts]
        return [self.to_image(pooled), self.to_patch(patches), *found]


def _image_tower(name: str) -> Any:
    """Returns the image tower `name` of timm. Raises an UnableError if there is none, or if it has no patch tokens."""
    if find_spec("timm") is None:
        raise UnableError("timm, which builds the image tower, is not installed.")
    # timm imports torchvision, which does not load with a CPU build of torch without this.
    import emocap_torchvision

    emocap_torchvision.install()
    import timm

    try:
        tower: Any = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise UnableError(f"--image-tower {name}: {str(error).splitlines()[0]}") from error
    if not hasattr(tower, "num_prefix_tokens"):
        raise UnableError(f"--image-tower {name} has no tokens for patches; choose a vit.")
    return tower


def _text_tower(layers: int, width: int) -> Any:
    """Returns a BERT model of the library `transformers`, with random weights."""
    if find_spec("transformers") is None:
        raise UnableError("transformers, which builds the text tower, is not installed.")
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        intermediate_size=4 * width,
    )
    return BertModel(config, add_pooling_layer=False)
