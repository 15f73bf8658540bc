"""Translates the flags of open_clip's training command into a config, with a comment for each flag that means another
thing here or has no counterpart (`emocap import-openclip`). Nothing is opened and nothing is downloaded.
"""

import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from shlex import join, quote
from typing import Any

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.layout import OPENAI_MEAN, OPENAI_STD, ImageTransformer, TextTransformer
from emocap_pretrain.suggestion.open_clip_flags import Flags
from emocap_pretrain.suggestion.open_clip_notes import notes_on
from emocap_pretrain.suggestion.settings import Block
from emocap_pretrain.suggestion.yaml_text import commented

Tree = dict[str, Any]
# Weights of OpenAI as transformers publishes them. All other names of the hub are those of open_clip.
_OPENAI = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}
_CLIP_VOCABULARY = 49408
_OPTIMIZERS = {"adamw": "adamw", "timm/adamw": "adamw", "timm/lion": "lion", "timm/lamb": "lamb", "timm/sgd": "sgd"}
_PRECISIONS = {"amp": "fp16", "fp16": "fp16", "pure_fp16": "fp16", "fp32": "fp32"}
_REFUSED = {
    "distill-model": "distillation from another CLIP does not exist here; objective.kind=soft with objective.teacher "
    "is the nearest (docs/method.md)",
    "use-bnb-linear": "8-bit training does not exist here; leave it out",
    "horovod": "Horovod is not supported; leave it out (docs/clusters.md)",
}


def translate(flags: Flags, *, processes: int | None = None) -> str:
    """Returns the YAML of a config that trains as open_clip would with these flags.

    Args:
        flags: The flags.
        processes: Number of processes (GPUs) of the training; None takes what the launcher's words say, or 1.

    Raises:
        ConfigError: If a flag changes what is trained in a way that has no counterpart, or if the number of samples is
            missing.
    """
    for name, why in _REFUSED.items():
        if flags[name]:
            raise ConfigError(f"--{name}: {why}.")
    return _Translation(flags, processes).text()


def _without_pipe(source: str) -> str:
    """Returns the URL that `pipe:aws s3 cp URL -` reads. Other commands are left for the config loader to refuse."""
    found = re.fullmatch(r"pipe: *aws s3 cp (?:--quiet )?(s3://\S+) -(?: --quiet)?", source)
    return found[1] if found else source


class _Translation:
    def __init__(self, flags: Flags, processes: int | None) -> None:
        self.flags = flags
        self.processes = processes or flags.processes or 1
        self.assumed = not (processes or flags.processes)
        name = flags["name"] or f"{flags['model']}-from-open-clip"
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:80] or "from-open-clip"
        self.model_name = flags["model"].replace("/", "-")
        self.table: Tree = json.loads(
            resources.files("emocap_pretrain.suggestion").joinpath("open_clip_models.json").read_text(encoding="utf-8")
        )
        self.epoch = self._steps_of_an_epoch()
        self.steps = self.epoch * flags["epochs"]

    def text(self) -> str:
        """Returns the document: the blocks of settings, and a list of flags that need a remark."""
        blocks = [
            Block("Translated by `emocap import-openclip`.", {"name": self.name, "url": self._url()}),
            Block("", {"seed": self.flags["seed"]}),
            self._length(),
            self._data(),
            self._model(),
            self._objective(),
            self._optimizer(),
            self._engine(),
            self._records(),
            self._evaluation(),
        ]
        return commented(blocks, "Flags that mean another thing here, or have no counterpart:", notes_on(self.flags))

    def _url(self) -> str:
        logs = self.flags["logs"]
        folder = "runs" if "logs" not in self.flags.given or logs.lower() == "none" else logs.rstrip("/")
        return f"{folder}/{self.name}"

    def _steps_of_an_epoch(self) -> int:
        """Returns the steps of an epoch as open_clip computes them, in which the last batches of workers are filled."""
        flags, samples = self.flags, self.flags["train-num-samples"]
        if not flags["train-data"]:
            raise ConfigError("--train-data is missing; it names the tars or the CSV of the training data.")
        if samples is None:
            raise ConfigError(
                "--train-num-samples is missing; a run here has a number of steps, which follows from it."
            )
        for name in ("batch-size", "accum-freq", "epochs", "train-num-samples"):
            if flags[name] < 1:
                raise ConfigError(f"--{name}={flags[name]} must be at least 1.")
        batch, workers = flags["batch-size"] * self.processes, max(1, flags["workers"])
        filled = math.ceil(math.ceil(samples / batch) / workers) * workers
        batches = samples // batch if self._is_csv() else filled
        steps = batches // flags["accum-freq"]
        if not steps:
            raise ConfigError(f"--train-num-samples={samples} is less than one step of {batch} samples.")
        return steps

    def _is_csv(self) -> bool:
        kind, data = self.flags["dataset-type"], self.flags["train-data"].lower()
        if kind == "synthetic":
            raise ConfigError("--dataset-type synthetic has no counterpart; `emocap synth` renders faces.")
        return kind == "csv" or (kind == "auto" and data.endswith((".csv", ".tsv")))

    def _length(self) -> Block:
        flags = self.flags
        batch = flags["batch-size"] * self.processes * flags["accum-freq"]
        found = "an assumption; --gpus N changes it" if self.assumed else "from the command"
        count = f"{self.processes} GPU{'s' if self.processes > 1 else ''} ({found})"
        comment = (
            f"global_batch is --batch-size {flags['batch-size']} x --accum-freq {flags['accum-freq']} x "
            f"{count}, because it is the batch of the loss over "
            f"all ranks. An epoch has {self.epoch} steps, and {flags['epochs']} epochs have {self.steps}."
        )
        sizes: Tree = {"steps": self.steps, "global_batch": batch}
        if flags["accum-freq"] > 1:
            sizes["micro_batch"] = flags["batch-size"]
            comment += " micro_batch is the number of rows of one pass; the loss is that of the whole batch."
        return Block(comment, sizes)

    def _data(self) -> Block:
        flags = self.flags
        sources = [_without_pipe(each) for each in flags["train-data"].split("::") if each]
        loading: Tree = {"workers": flags["workers"], "drop_last": True} | self._augmentation()
        unflipped = "open_clip does not mirror images, so flip is 0."
        if len(sources) == 1 and not self._is_csv():
            streamed = {"webdataset": {"url": sources[0], "samples": flags["train-num-samples"]}}
            comment = (
                "The tars are streamed as they are, so a run does not resume at the exact sample. To have that, type "
                f"the command below, and replace webdataset by url. {unflipped}"
            )
            return Block(comment, {"data": streamed | loading}, (self._pack(sources[0], f"data/{self.name}/train"),))
        urls = [f"data/{self.name}/train-{number}" for number in range(1, len(sources) + 1)]
        packs = tuple(self._pack(*pair) for pair in zip(sources, urls, strict=True))
        packed: Tree = {"url": urls[0]} if len(urls) == 1 else {"mix": [{"url": url} for url in urls]}
        return Block(f"{unflipped} Pack the data first:", {"data": packed | loading}, packs)

    def _pack(self, source: str, url: str) -> str:
        if not self._is_csv():
            return f"emocap pack {quote(source)} {url} --number-keys"
        names = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", " ": "space"}
        separator = str(self.flags["csv-separator"])
        delimiter = names.get(separator, separator)
        columns = ["--image", self.flags["csv-img-key"], "--global", self.flags["csv-caption-key"]]
        return join(["emocap", "pack", source, url, *columns, "--delimiter", delimiter])

    def _augmentation(self) -> Tree:
        chosen: Tree = dict(self.flags["aug-cfg"])
        scale = chosen.get("scale", (0.9, 1.0))
        if not (isinstance(scale, Sequence) and len(scale) == 2 and all(isinstance(x, int | float) for x in scale)):
            raise ConfigError(f"--aug-cfg scale={scale!r} is not a range, such as scale=(0.9,1.0).")
        # open_clip draws a share of the area, and data.crop is a share of the side.
        settings: Tree = {"crop": round(math.sqrt(max(0.0, scale[0])), 3), "flip": 0.0}
        augment: Tree = {}
        if jitter := chosen.get("color_jitter"):
            strengths = [jitter] * 3 if isinstance(jitter, int | float) else list(jitter)
            names = ("brightness", "contrast", "saturation", "hue")
            colour = dict(zip(names, strengths, strict=False)) | ({"hue": 0.0} if len(strengths) < 4 else {})
            augment["colour"] = {"probability": chosen.get("color_jitter_prob") or 1.0, **colour}
        if chosen.get("gray_scale_prob"):
            augment["greyscale"] = {"probability": chosen["gray_scale_prob"]}
        if chosen.get("re_prob"):
            augment["erasing"] = {"probability": chosen["re_prob"]}
        return settings | ({"augment": augment} if augment else {})

    def _model(self) -> Block:
        flags, pretrained = self.flags, self.flags["pretrained"] or ""
        model: Tree = {}
        if pretrained:
            model["from"] = self._weights(pretrained)
            comment = f"The weights of --model {flags['model']} --pretrained {pretrained}, under their name here."
            if model["from"] == pretrained:  # A file does not contain the activation.
                model["text"] = {"architecture": {"activation": self._activation()}}
        else:
            model |= self._architecture()
            comment = f"The sizes of --model {flags['model']}, with random weights."
        image: Tree = model.setdefault("image", {})
        text: Tree = model.setdefault("text", {})
        length = flags["force-context-length"]
        text["lengths"] = {"global": length or self._context()}
        if length:
            text["architecture"] = {**text.get("architecture", {}), "positions": length}
        image |= {key: value for key, value in self._image_settings().items() if value is not None}
        if flags["siglip"] and not pretrained:
            model |= {"initial_scale": 10.0, "initial_bias": -10.0}
        if flags["grad-checkpointing"]:
            model["checkpoint_activations"] = True
        self._freeze(model)
        return Block(comment, {"model": {key: value for key, value in model.items() if value != {}}})

    def _context(self) -> int:
        return 64 if "SigLIP" in self.model_name else 77

    def _activation(self) -> str:
        entry = self.table["models"].get(self.model_name, {})
        return "quick_gelu" if entry.get("quick_gelu") or self.flags["force-quick-gelu"] else "gelu"

    def _weights(self, pretrained: str) -> str:
        if pretrained.endswith((".pt", ".pth", ".bin", ".safetensors")) or "/" in pretrained:
            return pretrained
        plain = self.model_name.removesuffix("-quickgelu")
        if pretrained == "openai" and plain in _OPENAI:
            return _OPENAI[plain]
        tags = self.table["hub"].get(self.model_name, {})
        if pretrained not in tags:
            known = f"known tags: {', '.join(tags)}" if tags else "no weights of this model are known"
            raise ConfigError(
                f"--model {self.flags['model']} --pretrained {pretrained}: {known}; give a file, or a name on the hub "
                "such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K (docs/weights.md)."
            )
        return tags[pretrained]

    def _architecture(self) -> Tree:
        entry = self.table["models"].get(self.model_name)
        if entry is None:
            raise ConfigError(
                f"--model {self.flags['model']} without weights has no counterpart that is known; known are "
                f"{', '.join(self.table['models'])}."
            )
        pixels, patch, width, layers, heads = entry["image"]
        text_width, text_layers, text_heads = entry["text"]
        activation = self._activation()
        image = ImageTransformer(
            family="clip",
            width=width,
            layers=layers,
            heads=heads,
            patch=patch,
            pixels=pixels,
            mlp_width=4 * width,
            activation=activation,
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
        ).settings()
        text = TextTransformer(
            family="clip",
            width=text_width,
            layers=text_layers,
            heads=text_heads,
            positions=77,
            tokens=_CLIP_VOCABULARY,
            mlp_width=4 * text_width,
            activation=activation,
            norm_eps=1e-5,
            end_id=_CLIP_VOCABULARY - 1,
        ).settings()
        kept = {key: text[key] for key in ("architecture", "pooling", "end_id")}
        return {
            "embedding": entry["embedding"],
            "image": {key: value for key, value in image.items() if value != {}},
            "text": kept | {"tokenizer": _OPENAI["ViT-B-32"]},
        }

    def _image_settings(self) -> Tree:
        flags, size = self.flags, self.flags["force-image-size"]
        if size and len(set(size)) > 1:
            raise ConfigError(
                f"--force-image-size {' '.join(map(str, size))}: images are square here; give one number."
            )
        return {
            "pixels": size[0] if size else None,
            "patch_dropout": flags["force-patch-dropout"],
            "mean": flags["image-mean"],
            "std": flags["image-std"],
        }

    def _freeze(self, model: Tree) -> None:
        """Adds what is not trained. open_clip counts groups from the end: the projection, and then the blocks."""
        frozen: list[str] = []
        for tower, flag, open_groups in (
            ("image", "lock-image", "lock-image-unlocked-groups"),
            ("text", "lock-text", "lock-text-unlocked-layers"),
        ):
            if not self.flags[flag]:
                continue
            groups = max(0, self.flags[open_groups])
            if groups == 0:
                frozen.append(f"to_{tower}")
            if groups < 2:
                model[tower]["freeze"] = "all"
                continue
            entry = self.table["models"].get(self.model_name)
            if entry is None:
                raise ConfigError(
                    f"--{open_groups} {groups}: the number of blocks of {self.flags['model']} is not known; leave it "
                    f"out, and set model.{tower}.freeze yourself (docs/fine-tuning.md)."
                )
            blocks = entry["image"][3] if tower == "image" else entry["text"][1]
            if groups <= blocks + 1:
                model[tower]["freeze"] = blocks + 1 - groups
        if frozen:
            model["freeze"] = frozen

    def _objective(self) -> Block:
        weights: Tree = {"global": 1.0, "summary": 0.0, "local": 0.0}
        if self.flags["siglip"]:
            weights["kind"] = "sigmoid"
        return Block(
            "One caption for each image, as in open_clip. In a batch, equal captions are positives of each other here; "
            "known_positives: false makes them negatives, as in open_clip.",
            {"objective": weights},
        )

    def _optimizer(self) -> Block:
        flags, opt = self.flags, self.flags["opt"].lower()
        if opt not in _OPTIMIZERS:
            known = ", ".join(_OPTIMIZERS)
            raise ConfigError(f"--opt {flags['opt']} has no counterpart; known are {known} (docs/optimizers.md).")
        if flags["lr"] is None:
            raise ConfigError(f"--lr is missing; open_clip has no default with --opt {flags['opt']}.")
        name = _OPTIMIZERS[opt]
        settings: Tree = {"lr": flags["lr"], "weight_decay": flags["wd"]}
        if name != "adamw":
            settings = {"name": name, **settings}
        if name == "sgd":
            settings["sgd"] = {"momentum": 0.9 if flags["momentum"] is None else flags["momentum"]}
        elif flags["beta1"] is not None and flags["beta2"] is not None:
            settings["betas"] = [flags["beta1"], flags["beta2"]]
        if flags["eps"] is not None and name in {"adamw", "lamb"}:
            settings["eps"] = flags["eps"]
        settings |= self._schedule() | {"clip_norm": flags["grad-clip-norm"] or 0.0}
        return Block("", {"optimizer": settings})

    def _schedule(self) -> Tree:
        flags = self.flags
        if flags["skip-scheduler"]:
            return {"warmup_steps": 0, "schedule": "constant"}
        # A warm-up may be longer than the run, here as in open_clip, whose default is 10,000: lr is then never reached.
        warmup: Tree = {"warmup_steps": flags["warmup"]}
        if flags["lr-scheduler"] == "cosine":
            return warmup
        if flags["lr-scheduler"] == "const" or flags["warmup"] >= self.steps:
            return warmup | {"schedule": "constant"}
        if not flags["epochs-cooldown"]:
            raise ConfigError("--lr-scheduler const-cooldown needs --epochs-cooldown.")
        if flags["lr-cooldown-power"] != 1.0:
            raise ConfigError(
                f"--lr-cooldown-power {flags['lr-cooldown-power']:g} has no counterpart: the decay is linear (1), or "
                "optimizer.decay_shape=sqrt (docs/optimizers.md)."
            )
        decay = min(self.epoch * flags["epochs-cooldown"], self.steps - warmup["warmup_steps"])
        share: Tree = {"final_share": flags["lr-cooldown-end"] / flags["lr"]} if flags["lr-cooldown-end"] else {}
        return warmup | {"schedule": "wsd", "decay_steps": max(1, decay)} | share

    def _engine(self) -> Block:
        engine: Tree = {"precision": _PRECISIONS.get(self.flags["precision"], "bf16")}
        if self.flags["torchcompile"]:
            engine["compile"] = True
        if self.flags["opt"].lower() == "timm/lamb":
            engine["zero_stage"] = 0
        cluster: Tree = {} if self.assumed else {"cluster": {"ranks": self.processes}}
        if self.flags["device"] == "cpu":
            cluster = {"cluster": {**cluster.get("cluster", {}), "device": "cpu"}}
        return Block("", {"engine": engine, **cluster})

    def _records(self) -> Block:
        flags, every = self.flags, max(1, self.flags["save-frequency"]) * self.epoch
        checkpoint: Tree = {"every_steps": every if flags["save-frequency"] > 0 else self.steps}
        checkpoint |= (
            {"keep_last": 1} if flags["delete-previous-checkpoint"] else {"keep_every": checkpoint["every_steps"]}
        )
        report = {each.strip() for each in flags["report-to"].split(",")}
        tracking: Tree = {"every_steps": max(1, flags["log-every-n-steps"])}
        if report & {"tensorboard", "all"}:
            tracking["tensorboard"] = f"{self._url()}/tensorboard"
        if report & {"wandb", "all"}:
            tracking["wandb"] = flags["wandb-project-name"]
        if flags["wandb-notes"]:
            tracking["tags"] = {"notes": flags["wandb-notes"][:500]}
        return Block("", {"checkpoint": checkpoint, "tracking": tracking})

    def _evaluation(self) -> Block:
        flags, data = self.flags, self.flags["val-data"]
        if not data:
            return Block("Without --val-data there is nothing to evaluate on.", {"evaluation": {"url": None}})
        url, frequency = f"data/{self.name}/valid", flags["val-frequency"]
        settings: Tree = {"url": url, "tasks": ["retrieval", "held_out_loss"]}
        saved = max(1, flags["save-frequency"])
        if frequency:
            settings["every_checkpoints"] = max(1, round(frequency / saved))
        return Block(f"Pack the validation data too: {self._pack(data, url)}.", {"evaluation": settings})
