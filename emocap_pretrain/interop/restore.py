"""Restores a trained model from a run's checkpoint, with safetensors and without pickle.

The checkpoint is not trusted. Its config is only data: no path or URL in the config is opened, and no expression in it
is resolved or executed. The model that the config describes must fit the checkpoint's weights before memory is
allocated.

`restore` proceeds in this order: it downloads weights and tokenizer, reads the header of the weights, checks the
settings (`_require_inert`), builds the model on the device "meta" within a budget that follows from the header,
compares this model with the header, and only then builds the model again in memory. docs/security.md lists what this
guarantees.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from emocap_shards.store import Store, open_store
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from emocap_pretrain.checkpoint.best import Criterion, best_checkpoint
from emocap_pretrain.checkpoint.layout import ENGINE, TOKENIZER, WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.config.load import from_stored, unresolved
from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.average import with_average, with_schedule_free
from emocap_pretrain.interop.interpolation import interpolated
from emocap_pretrain.interop.layouts.layout import TIMM_NAME
from emocap_pretrain.model.lora import merge_adapters
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.weights import Fit, shapes_of
from emocap_pretrain.run_folder.results import Weights, average_of

StepChoice = int | Literal["best"]
"""A checkpoint of a run: the one of a step, or the best evaluated one."""

# A text among the options of a tower may name a type of layer. It cannot be a path or a URL, which contain a slash.
_PLAIN_OPTION = re.compile(r"[A-Za-z0-9_.-]{0,40}")
# Largest number in a config, largest side of an image, and largest length of a run's id.
LARGEST_NUMBER, LARGEST_PIXELS, LONGEST_ID = 1 << 24, 4096, 64


@dataclass(frozen=True, slots=True)
class Restored:
    """Holds a restored model in evaluation mode, with its config, tokenizer and step.

    `run_id` is MLflow's id of the run, and `data_digest` the digest of its datasets, as the checkpoint contains them;
    each is empty if the checkpoint has none. `weights` says whether the model has the weights of the step ("raw"),
    their moving average ("ema"), or the average of schedule-free AdamW ("schedule_free"). `share` is the share of these
    weights in an interpolation with the weights of the start; it is None if the weights are not interpolated.
    """

    config: Config
    model: TowerPair
    tokenizer: Tokenizer
    step: int
    run_id: str = ""
    data_digest: str = ""
    weights: Weights = "raw"
    share: float | None = None


def restore(
    run_url: str,
    *,
    step: StepChoice | None = None,
    config: Config | None = None,
    weights: Weights | None = None,
    interpolate: float | None = None,
) -> Restored:
    """Restores the model of a checkpoint, on the CPU.

    This is not a collective: one process reads the checkpoint, and may send the model to others. The pretrained weights
    that the config names for the towers are not opened, because the checkpoint holds all weights.

    Args:
        run_url: The run's `url`.
        step: Step of the checkpoint, or "best" (`chosen`); None takes the newest one.
        config: The run's config, if the user gives it; it is trusted. With None the config in the checkpoint is used,
            which is not trusted.
        weights: "raw" takes the weights of the step, "ema" their moving average, and "schedule_free" the average that
            this optimizer means for use. For an average, all engine files of the checkpoint are read. None takes the
            average if the run keeps one.
        interpolate: A share `a` from 0 to 1 returns the model with the weights (1 - a) * start + a * trained, for which
            the run's checkpoint of step 0 is read too. None returns the trained weights.

    Raises:
        CheckpointError: If there is no such checkpoint, a file is missing or differs from the manifest, `weights`
            names an average that the run does not keep, or `interpolate` is given and the run has no checkpoint of step
            0.
        ConfigError: If the weights do not belong to the model that the config describes, if `interpolate` is not
            between 0 and 1, or if it is not safe to build a model from the checkpoint's config, for example because a
            setting refers to an environment variable.
        StoreError: If the store of the run cannot be reached.
    """
    store = open_store(run_url)
    checkpoint = chosen(store, run_url, step)
    weights = _chosen_weights(weights, checkpoint, run_url)
    needed = (WEIGHTS, TOKENIZER) if weights == "raw" else (WEIGHTS, TOKENIZER, ENGINE)
    with downloaded(store, checkpoint, lambda path: path.partition("/")[0] in needed) as folder:
        settings, model, tokenizer = model_of(
            folder,
            checkpoint.state.get("config"),
            checkpoint.state.get("text_architecture"),
            trusted=config,
            weights=weights,
        )
    if interpolate is not None:
        # The settings of the checkpoint must not be passed here, because they would then count as trusted.
        start = restore_start(run_url, config=config)
        model.load_state_dict(interpolated(start.state_dict(), model.state_dict(), interpolate))
    run_id, data_digest = (str(checkpoint.state.get(key, ""))[:LONGEST_ID] for key in ("run_id", "data_digest"))
    return Restored(settings, model, tokenizer, checkpoint.step, run_id, data_digest, weights, interpolate)


def has_start(run_url: str) -> bool:
    """Returns whether the run has a checkpoint of step 0, which holds the weights with which it began.

    Raises:
        CheckpointError: If a manifest is undamaged, but this version of the package cannot use it.
        StoreError: If the store of the run cannot be reached.
    """
    return any(each.step == 0 for each in committed(open_store(run_url)))


def restore_start(run_url: str, *, config: Config | None = None) -> TowerPair:
    """Restores the model with which a run began, from the checkpoint of step 0.

    Args:
        run_url: The run's `url`.
        config: The run's config, as in `restore`.

    Raises:
        CheckpointError: If the run has no checkpoint of step 0. Further errors are those of `restore`.
    """
    if not has_start(run_url):
        raise CheckpointError(
            f"{run_url} has no checkpoint of step 0, so the weights of its start are not known. A run keeps them if it "
            "starts with evaluation.interpolate, or from pretrained weights with evaluation.url."
        )
    return restore(run_url, step=0, config=config, weights="raw").model


def model_of(
    folder: Path, stored: Any, architecture: Any, *, trusted: Config | None = None, weights: Weights = "raw"
) -> tuple[Config, TowerPair, Tokenizer]:
    """Builds a model in evaluation mode from a folder with weights and a tokenizer. The folder is not trusted.

    LoRA adapters are merged into the weights of their layers, and the returned config describes the merged model. So
    code that uses a restored model need not handle adapters.

    Args:
        folder: Local folder with `model.safetensors` and `tokenizer.json`.
        stored: The settings, as `Config.stored` returns them.
        architecture: The configuration of a pretrained text tower (`TextTower.recorded`); None if there is none.
        trusted: A config of the user, which replaces `stored`.
        weights: Which weights the trained parameters get. For an average, all engine files must be in the folder.

    Raises:
        CheckpointError: If the weights are not a safetensors file, or the average cannot be read.
        ConfigError: If the weights do not belong to the model that the config describes, or if it is not safe to build
            a model from `stored`.
    """
    shapes = WeightShapes.read(folder / WEIGHTS)
    config = trusted
    if config is None:
        config = from_stored(stored)
        _require_inert(config, architecture, shapes)
    tokenizer = Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))
    build = partial(
        TowerPair.of,
        config.model,
        config.objective,
        tokenizer.vocabulary,
        precision=config.engine.precision,
        weights=False,
        text_architecture=architecture,
    )
    # Nothing is allocated before this comparison. After it, the model is known to be as large as the weights.
    with torch.device("meta"), shapes.budget():
        shapes.require_fit(build())
    model = build()
    model.load_state_dict(_values(folder, weights, config))
    if config.model.has_adapters:
        merge_adapters(model)
        config = config.model_copy(update={"model": config.model.without_adapters()})
    return config, model.eval(), tokenizer


def chosen(store: Store, run_url: str, step: StepChoice | None) -> Checkpoint:
    """Returns the checkpoint of a step, or the newest one if `step` is None.

    With "best", it is the best evaluated checkpoint by the score that `checkpoint.keep_best` of the run names
    (`checkpoint/best.py`).

    Raises:
        CheckpointError: If there is no such checkpoint. The message lists the steps that exist.
    """
    by_step = {each.step: each for each in committed(store)}
    steps = ", ".join(map(str, sorted(by_step))) or "none"
    if step == "best":
        criterion = Criterion.of_checkpoint(by_step[max(by_step)]) if by_step else None
        if criterion is None:
            raise CheckpointError(
                f"{run_url} does not say which checkpoint is the best: its settings have no checkpoint.keep_best; "
                f"steps: {steps}."
            )
        best = best_checkpoint(store, criterion, by_step)
        if best is None:
            raise CheckpointError(
                f"{run_url} has no checkpoint that was evaluated with {criterion.name}; steps: {steps}."
            )
        step = best.step
    number = max(by_step, default=-1) if step is None else step
    if number not in by_step:
        raise CheckpointError(
            f"{run_url} has no checkpoint{'' if step is None else f' of step {step}'}; steps: {steps}."
        )
    return by_step[number]


def _values(folder: Path, weights: Weights, config: Config) -> dict[str, Tensor]:
    values = load_file(folder / WEIGHTS)
    match weights:
        case "raw":
            return values
        case "ema":
            return with_average(values, folder)
        case "schedule_free":
            # The config may be that of the user, with another optimizer.
            if config.optimizer.name != "schedule_free":
                raise CheckpointError(
                    f"the checkpoint holds the state of schedule_free, and optimizer.name is {config.optimizer.name}: "
                    "give the config with which the run was trained."
                )
            return with_schedule_free(values, folder, beta=config.optimizer.betas[0])


def _chosen_weights(weights: Weights | None, checkpoint: Checkpoint, run_url: str) -> Weights:
    kept = average_of(checkpoint.state.get("config"))
    if weights == "ema" and kept != "ema":
        raise CheckpointError(
            f"{run_url} keeps no moving average of its weights (its setting ema is null): choose the weights raw."
        )
    if weights == "schedule_free" and kept != "schedule_free":
        raise CheckpointError(
            f"{run_url} was not trained with optimizer.name=schedule_free: choose other weights than schedule_free."
        )
    return weights or kept


@dataclass(frozen=True, slots=True)
class WeightShapes:
    """Holds the shape of every tensor of a safetensors file by its name, read from the file's header."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, path: Path) -> "WeightShapes":
        """Reads the header of a file.

        Raises:
            CheckpointError: If the file is not a safetensors file.
        """
        try:
            with safe_open(path, "pt") as file:
                return cls({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name} of the checkpoint is not a safetensors file: {error}") from error

    @property
    def numbers(self) -> int:
        """Returns the number of elements of all tensors together."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def largest(self) -> int:
        """Returns the size of the largest dimension of any tensor."""
        return max((side for shape in self.shapes.values() for side in shape), default=0)

    def require_fit(self, model: nn.Module) -> None:
        """Checks that the file has exactly the model's tensors, each of the same shape.

        Raises:
            ConfigError: If a tensor is missing, superfluous, or of another shape.
        """
        fit = Fit.of(shapes_of(model.state_dict()), self.shapes)
        fit.require("the checkpoint", "the model that the config describes", "They do not belong together.")

    @contextmanager
    def budget(self) -> Generator[None]:
        """Limits the size of a model that is built in the `with` block.

        The limit protects memory and time from a malicious config. Hooks of torch count every module, parameter and
        buffer that is registered in this process, so no other thread may build a model at the same time.

        Raises:
            CheckpointError: As soon as the model has clearly more modules or elements than the weights could fill.
        """
        spent = {"modules": 0, "numbers": 0}
        # A block has some modules and buffers without weights, and some towers register a parameter twice.
        most = {"modules": 1000 + 40 * len(self.shapes), "numbers": (1 << 28) + 4 * self.numbers}

        def spend(what: str, amount: int) -> None:
            spent[what] += amount
            if spent[what] > most[what]:
                raise CheckpointError(
                    f"the checkpoint's config describes a model of more than {most[what]:,} {what}, but the weights "
                    f"of the checkpoint are {len(self.shapes):,} tensors of {self.numbers:,} numbers: they do not "
                    "belong together."
                )

        def tensor_registered(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
            spend("numbers", 0 if tensor is None else tensor.numel())
            spend("modules", 1)  # Tensors without elements take time and memory as well.

        def module_registered(_module: nn.Module, _name: str, _submodule: nn.Module | None) -> None:
            spend("modules", 1)

        with ExitStack() as stack:
            for handle in (
                hooks.register_module_parameter_registration_hook(tensor_registered),
                hooks.register_module_buffer_registration_hook(tensor_registered),
                hooks.register_module_module_registration_hook(module_registered),
            ):
                stack.callback(handle.remove)
            yield


def _require_inert(config: Config, architecture: Any, weights: WeightShapes) -> None:
    """Checks that it is safe to build a model from a stored config.

    The config must not need an environment variable, a file or a hub, and the memory of its model must be bounded.

    Args:
        config: The config in the checkpoint.
        architecture: The configuration of a pretrained text tower, as the checkpoint contains it; None if there is
            none.
        weights: The shapes of the checkpoint's weights, from which the largest allowed numbers follow.

    Raises:
        ConfigError: If one of these conditions does not hold.
    """
    image, text = config.model.image, config.model.text
    # The sources of weights and tokenizer are never opened, because the checkpoint holds both.
    unused = {"image": {"pretrained"}, "text": {"pretrained", "tokenizer", "vocabulary"}}
    model = config.model.model_dump(mode="json", exclude=unused)
    evaluation = config.evaluation.model_dump(mode="json", exclude={"url"})
    for key, value in unresolved({"model": model, "evaluation": evaluation}):
        raise _refused(f"takes {key} from {value}, which is never resolved")
    if not TIMM_NAME.fullmatch(image.name):
        raise _refused(f"names the image tower {image.name!r}, which is not a model in timm")
    for key, value in image.options.items():
        if not is_plain(value):
            raise _refused(f"sets model.image.options.{key}={value!r}, where only short names are allowed")
    if text.pretrained is not None and not isinstance(architecture, Mapping):
        raise _refused(f"names the text encoder {text.pretrained!r} without its architecture")
    if reason := too_large(image, [model, architecture], weights):
        raise _refused(reason)


def too_large(image: ImageTowerConfig, settings: Any, weights: WeightShapes) -> str | None:
    """Returns why the settings are refused before a model is built; None if no single number is too large.

    The settings are refused if a number, the pixels or a depth is too large for the weights. The size of the whole
    model is not checked here: `WeightShapes.budget` limits it. The settings and the weights come from the same
    untrusted source. The returned reason completes a sentence that begins with "the config".

    Args:
        image: The settings of the image tower.
        settings: All settings of the model, in nested lists and mappings.
        weights: The shapes of the weights.
    """
    if reason := number_too_large(settings, weights, pixels=image.pixels):
        return reason
    # timm loops over the depth before it builds the first block, so `budget` would notice a huge depth too late.
    deepest = [image.options.get(key) for key in ("depth", "depths")]
    if any(isinstance(leaf, int | float) and leaf > len(weights.shapes) for leaf in _leaves(deepest)):
        return f"asks for a tower of depth {deepest}, but the weights are only {len(weights.shapes):,} tensors"
    return None


def number_too_large(settings: Any, weights: WeightShapes, *, pixels: int = 0) -> str | None:
    """Returns why settings are refused of which a number is too large for the weights, or the pixels are too many.

    The result is None if there is no such number. The reason completes a sentence that begins with "the config".
    """
    largest = max((abs(leaf) for leaf in _leaves(settings) if isinstance(leaf, int | float)), default=0)
    # `not a <= b` and not `a > b`: every comparison with NaN is false, so NaN is refused too.
    if not largest <= max(LARGEST_NUMBER, weights.largest) or pixels > LARGEST_PIXELS:
        number = str(max(largest, pixels))[:20]
        return f"asks for a model with the number {number}; no axis of its weights exceeds {weights.largest:,}"
    return None


def is_plain(options: Any) -> bool:
    """Returns whether all texts among the options of a tower are short names, such as the name of a type of layer."""
    return all(_PLAIN_OPTION.fullmatch(leaf) for leaf in _leaves(options) if isinstance(leaf, str))


def _refused(what: str) -> ConfigError:
    return ConfigError(f"the checkpoint's config {what}. Give the run's own config file with --config, if you have it.")


def _leaves(tree: Any) -> Iterator[Any]:
    """Yields every value in nested lists and mappings. It uses no recursion, because the nesting may be deep."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, Mapping):
            left.extend(node.values())
        elif isinstance(node, list | tuple):
            left.extend(node)
        else:
            yield node
