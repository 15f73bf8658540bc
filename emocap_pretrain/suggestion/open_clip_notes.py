"""Says what the flags of open_clip mean here, where the setting alone does not say it."""

from emocap_pretrain.suggestion.open_clip_flags import Flags

_RANKS = "the launcher and emocap handle processes and devices (docs/clusters.md)."
_EXACT = "the loss is always that of the whole batch, with gradients through all ranks, and is computed in blocks."
_IMAGENET = "ImageNet is not evaluated; zero_shot scores your own classes (docs/evaluation.md)."
_SYNC = "url may be a URL such as s3://bucket/runs/my, so nothing has to be copied."
_FROZEN = "a frozen tower runs without dropout; norms of batches keep learning their statistics."
_COCA = "CoCa has no counterpart here; only its contrastive part is trained."
_NOTES = {
    "epochs": "a run counts steps; see steps.",
    "save-frequency": "checkpoints are saved by steps; see checkpoint.every_steps.",
    "val-frequency": "evaluations follow checkpoints; see evaluation.every_checkpoints.",
    "zeroshot-frequency": _IMAGENET,
    "imagenet-val": _IMAGENET,
    "imagenet-v2": _IMAGENET,
    "local-loss": _EXACT,
    "gather-with-grad": _EXACT,
    "loss-dist-impl": _EXACT,
    "save-most-recent": "a run always resumes from its newest checkpoint.",
    "copy-codebase": "nothing is copied; the run records its versions.",
    "log-local": "rank 0 logs; the logs of all ranks are in the run's folder.",
    "debug": "emocap pretrain --debug shows tracebacks.",
    "use-bn-sync": "norms over batches are not synchronized between ranks; choose a tower without them.",
    "dataset-resampled": "samples are drawn without replacement, each once in an epoch.",
    "train-data-upsampling-factors": "set a weight for each dataset of data.mix; it is a share of the samples.",
    "val-num-samples": "a packed dataset knows its number of samples.",
    "lock-image-freeze-bn-stats": _FROZEN,
    "lock-text-freeze-layer-norm": "a frozen block is frozen with its norms.",
    "image-interpolation": "images are always resized bicubically.",
    "image-resize-mode": "training crops images; evaluation.crop says what an evaluation reads.",
    "force-custom-text": "the text tower is always separate.",
    "torchscript": "there is no TorchScript; engine.compile compiles the towers.",
    "trace": "there is no tracing; emocap export writes programs of torch.",
    "ddp-static-graph": _RANKS,
    "no-set-device-rank": _RANKS,
    "dist-url": _RANKS,
    "dist-backend": _RANKS,
    "remote-sync": _SYNC,
    "remote-sync-frequency": _SYNC,
    "remote-sync-protocol": _SYNC,
    "cache-dir": "set HF_HOME for downloads of weights.",
    "coca-caption-loss-weight": _COCA,
    "coca-contrastive-loss-weight": _COCA,
    "distill-pretrained": "has no effect without --distill-model.",
    "pretrained-image": "for an image tower with timm's own weights set model.image.pretrained: hub.",
    "seed": "the seed draws other random numbers than in open_clip.",
    "momentum": "is set for --opt timm/sgd only.",
    "resume": "the same command resumes a run, with any number of ranks. To begin with the weights of a checkpoint of "
    "open_clip, set model.from to its file; the state of the optimizer is not read.",
    "wandb-notes": "is the tag notes of the run in MLflow.",
    "report-to": "MLflow is always written too (docs/tracking.md).",
}
_UNUSED = ("ratio", "re_count", "use_timm", "interpolation")


def notes_on(flags: Flags) -> list[str]:
    """Returns a line for each given flag that needs a remark. Flags with the same remark share a line."""
    by_note: dict[str, list[str]] = {}
    for name, note in _NOTES.items():
        if name in flags.given:
            by_note.setdefault(note, []).append(f"--{name}")
    lines = [f"{', '.join(names)}: {note}" for note, names in by_note.items()]
    return [*lines, *_of_augmentation(flags), *_of_precision(flags)]


def _of_augmentation(flags: Flags) -> list[str]:
    lines: list[str] = []
    if "aug-cfg" in flags.given:
        lines.append("--aug-cfg scale: a share of the area; data.crop is the smallest share of the side.")
        unused = [f"{key}" for key, _ in flags["aug-cfg"] if key in _UNUSED]
        if unused:
            lines.append(f"--aug-cfg {', '.join(unused)}: has no counterpart (docs/augmentation.md).")
    return lines


def _of_precision(flags: Flags) -> list[str]:
    precision = flags["precision"]
    if precision in {"bf16", "fp16", "pure_bf16", "pure_fp16"}:
        return [f"--precision {precision}: weights and the optimizer stay float32, and the towers run under autocast."]
    if precision == "amp":
        return ["--precision amp: float16 with a loss scale; bf16 is simpler where the GPU has it."]
    return []
