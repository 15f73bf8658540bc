"""Builds models of transformers and loads their weights, without code of strangers, downloads and silent gaps.

`loaded` compares the weights with the model by names and shapes. transformers alone would only warn of layers that keep
random values. `check_attention` refuses configs with which transformers would download a kernel, and `quiet` keeps its
tables and progress bars from the terminal.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

import emocap_torchvision
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.weights import Fit

emocap_torchvision.install()
from transformers.utils import logging as transformers_logging  # noqa: E402 - after emocap_torchvision

# With any other value in a config, transformers would download a kernel, which is a program. `trust_remote_code=False`
# does not prevent this.
ATTENTIONS = frozenset({None, "eager", "sdpa"})
# What torch and transformers raise if a model is built from a config with wrong values.
WRONG_NUMBERS = (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
TRUST: dict[str, Any] = {"trust_remote_code": False}  # None would ask on the terminal.
# Buffers that older releases of transformers have stored with the weights.
_CONSTANT = ("position_ids", "token_type_ids", "inv_freq")


def loaded(
    kind: Any, where: str, *source: str | None, unused: tuple[str, ...] = (), **loading: Any
) -> tuple[Any, tuple[str, ...]]:
    """Loads a model, and checks that the weights match it.

    The first word of a parameter's name says to which module it belongs. If the model has no module of that name, for
    example for a pretraining head, the weights are left out. If the model has the module but not the parameter, for
    example because the config gives fewer layers than the file has, this is an error.

    Args:
        kind: The class of transformers that loads the weights.
        where: First words of an error message: the setting that names the weights, and its value.
        source: The folder or the name on the hub; None if `loading` contains the state dict.
        unused: Prefixes of parameters that nobody reads, and that may lack weights.
        loading: Further arguments of `from_pretrained`.

    Returns:
        The model in float32 and the names of the modules whose weights were left out.

    Raises:
        ConfigError: If transformers cannot load the weights, or they do not match the model.
    """
    # The weights are float32 whatever the file holds (decision 4). With the other two options transformers lists all
    # differences, instead of raising an error at the first tensor of another shape.
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet():
            model, found = kind.from_pretrained(*source, **loading, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise no_encoder(where, error) from error
    # The first word of a name says to which module of the model it belongs. In a file with a head, the names of the
    # encoder begin with the prefix of the encoder.
    parts = {model.base_model_prefix, *(part for part, _ in model.named_children())}
    extra = [each for each in found["unexpected_keys"] if not each.endswith(_CONSTANT)]
    missing = (each for each in found["missing_keys"] if not (unused and each.startswith(unused)))
    fit = Fit(
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(each for each in extra if each.split(".")[0] in parts)),
        reshaped=tuple((each, tuple(has), tuple(wants)) for each, has, wants in sorted(found["mismatched_keys"])),
    )
    fit.require(
        where,
        f"the tower of its config.json ({type(model).__name__})",
        "Give a folder whose config.json and weights belong together.",
    )
    return model, tuple(sorted({each.split(".")[0] for each in extra}))


@contextmanager
def quiet() -> Generator[None]:
    """Prevents transformers from printing progress bars, remarks and tables of parameter names within the block.

    `Fit.require` reports missing and unexpected names in one line instead.
    """
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def no_encoder(where: str, error: Exception) -> ConfigError:
    """Returns the error for weights that transformers cannot load."""
    return ConfigError(
        f"{where}: no encoder with safetensors weights in that folder or under that hub name "
        f"({(str(error) or repr(error)).splitlines()[0]})."
    )


def check_attention(config: Any, what: str) -> None:
    """Checks that a config and its sub-configs only name implementations of attention that are in `ATTENTIONS`.

    For any other implementation, the library `transformers` would download a kernel, that is, code that it executes.

    Args:
        config: The config of an encoder.
        what: First words of the error message, which say where the config comes from.

    Raises:
        ConfigError: If one of the configs names another implementation.
    """
    parts = [config, *filter(None, (getattr(config, name, None) for name in config.sub_configs))]
    for found in (getattr(part, "_attn_implementation", None) for part in parts):
        if found not in ATTENTIONS:
            raise ConfigError(f"{what}: its config asks for the attention {found!r}; take one with sdpa or eager.")
