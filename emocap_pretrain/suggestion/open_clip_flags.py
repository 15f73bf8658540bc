"""Parses the flags of open_clip's training command (`python -m open_clip_train.main`), as open_clip 3.3 defines them.

Nothing of open_clip is imported, and nothing that a flag names is opened.
"""

import argparse
import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from emocap_pretrain.errors import ConfigError

COMMAND = "open_clip_train.main"
MOST_CHARACTERS = 65_536
_MODULES = frozenset({COMMAND, "training.main"})  # The second one is the name in releases before 2.25.

_SWITCHES = [
    "dataset-resampled",
    "log-local",
    "use-bn-sync",
    "skip-scheduler",
    "save-most-recent",
    "pretrained-image",
    "lock-image",
    "lock-image-freeze-bn-stats",
    "grad-checkpointing",
    "local-loss",
    "gather-with-grad",
    "force-quick-gelu",
    "force-custom-text",
    "torchscript",
    "torchcompile",
    "trace",
    "debug",
    "copy-codebase",
    "horovod",
    "ddp-static-graph",
    "no-set-device-rank",
    "lock-text",
    "lock-text-freeze-layer-norm",
    "delete-previous-checkpoint",
    "siglip",
]
# The default of each flag with a value, by the type of the value.
_WHOLE: dict[str, int | None] = {
    "train-num-samples": None,
    "val-num-samples": None,
    "workers": 4,
    "batch-size": 64,
    "epochs": 32,
    "epochs-cooldown": None,
    "warmup": 10_000,
    "save-frequency": 1,
    "zeroshot-frequency": 2,
    "val-frequency": 1,
    "lock-image-unlocked-groups": 0,
    "force-context-length": None,
    "accum-freq": 1,
    "seed": 0,
    "lock-text-unlocked-layers": 0,
    "log-every-n-steps": 100,
    "remote-sync-frequency": 300,
}
_NUMBERS: dict[str, float | None] = {
    "lr": None,
    "beta1": None,
    "beta2": None,
    "eps": None,
    "wd": 0.2,
    "momentum": None,
    "lr-cooldown-end": 0.0,
    "lr-cooldown-power": 1.0,
    "force-patch-dropout": None,
    "grad-clip-norm": None,
    "coca-caption-loss-weight": 2.0,
    "coca-contrastive-loss-weight": 1.0,
}
_TEXTS: dict[str, str | None] = {
    "train-data": None,
    "train-data-upsampling-factors": None,
    "val-data": None,
    "csv-separator": "\t",
    "csv-img-key": "filepath",
    "csv-caption-key": "title",
    "imagenet-val": None,
    "imagenet-v2": None,
    "cache-dir": None,
    "logs": "./logs/",
    "name": None,
    "opt": "adamw",
    "resume": None,
    "model": "RN50",
    "pretrained": "",
    "device": "cuda",
    "dist-url": None,
    "dist-backend": None,
    "report-to": "",
    "wandb-notes": "",
    "wandb-project-name": "open-clip",
    "remote-sync": None,
    "distill-model": None,
    "distill-pretrained": None,
    "use-bnb-linear": None,
    "loss-dist-impl": None,
}
_CHOICES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "dataset-type": ("auto", ("webdataset", "csv", "synthetic", "auto")),
    "lr-scheduler": ("cosine", ("cosine", "const", "const-cooldown")),
    "precision": ("amp", ("amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16", "fp32")),
    "image-interpolation": (None, ("bicubic", "bilinear", "random")),
    "image-resize-mode": (None, ("shortest", "longest", "squash")),
    "remote-sync-protocol": ("s3", ("s3", "fsspec")),
}
_LISTS = {"image-mean": float, "image-std": float, "force-image-size": int}


@dataclass(frozen=True, slots=True)
class Flags:
    """Holds the values of all flags, as open_clip would use them.

    Attributes:
        values: The value of each flag by its name, such as "batch-size".
        given: The names of the flags that the user gave.
        processes: Number of processes that the launcher before the flags starts; None if there is none.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    processes: int | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"open_clip's flags: {message}.")


def parse(text: str) -> Flags:
    """Parses a text with flags. The words of a launcher before them, such as those of torchrun, may be left in it.

    Raises:
        ConfigError: For a flag that open_clip 3.3 does not have, a value that is not one, or a text that is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the flags have {len(text):,} characters; at most {MOST_CHARACTERS:,} are read.")
    if not all(letter.isprintable() or letter in "\n\r\t" for letter in text):
        raise ConfigError("the flags contain a character that cannot be printed; type them again.")
    try:
        # Unlike a shell, shlex keeps the line break after a backslash.
        words = shlex.split(re.sub(r"\\\r?\n", " ", text), comments=True)
    except ValueError as error:
        raise ConfigError(f"the flags cannot be divided into words: {error}; check the quotation marks.") from error
    if any("\n" in word or "\r" in word for word in words):
        raise ConfigError("the flags contain a line break within a word; check the quotation marks.")
    launcher, words = _divided(words)
    given: dict[str, Any] = {name.replace("_", "-"): value for name, value in vars(_parser().parse_args(words)).items()}
    values = _defaults() | given
    if not str(values["opt"]).startswith("timm"):
        moments = (0.9, 0.98, 1e-6) if "vit" in values["model"].lower() else (0.9, 0.999, 1e-8)
        for name, value in zip(("lr", "beta1", "beta2", "eps"), (5e-4, *moments), strict=True):
            values[name] = value if values[name] is None else values[name]
    return Flags(values, frozenset(given), _processes(launcher))


def _divided(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the words of the launcher, and the flags after the name of open_clip's program."""
    for number, word in enumerate(words):
        if word in _MODULES or word.endswith(("open_clip_train/main.py", "training/main.py")):
            return words[:number], words[number + 1 :]
    return (), words


def _processes(launcher: Sequence[str]) -> int | None:
    """Returns the number of processes that torchrun's options ask for; None if they give no number."""
    counts: dict[str, int] = {}
    for number, word in enumerate(launcher):
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        following = value if equals else next(iter(launcher[number + 1 :]), "")
        if name in {"nproc_per_node", "nnodes"} and re.fullmatch(r"[1-9][0-9]{0,5}", following):
            counts[name] = int(following)
    return counts["nproc_per_node"] * counts.get("nnodes", 1) if "nproc_per_node" in counts else None


def _parser() -> _Parser:
    # A flag that is not given has no value here, so that the given ones are known.
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for name in _SWITCHES:
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS)
    for kind, names in ((int, _WHOLE), (float, _NUMBERS), (str, _TEXTS)):
        for name in names:
            parser.add_argument(f"--{name}", type=kind)
    for name, (_, choices) in _CHOICES.items():
        parser.add_argument(f"--{name}", choices=choices)
    for name, kind in _LISTS.items():
        parser.add_argument(f"--{name}", type=kind, nargs="+")
    parser.add_argument("--aug-cfg", nargs="*", type=_pair)
    return parser


def _defaults() -> dict[str, Any]:
    choices = {name: default for name, (default, _) in _CHOICES.items()}
    lists = dict.fromkeys(_LISTS)
    return {**dict.fromkeys(_SWITCHES, False), **_WHOLE, **_NUMBERS, **_TEXTS, **choices, **lists, "aug-cfg": []}


def _pair(text: str) -> tuple[str, Any]:
    """Returns the key and the value of a text such as "scale=(0.9, 1.0)"; a value that is not a literal is a text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value
