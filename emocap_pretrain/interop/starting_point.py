"""Defines the starting point of a new run: what it takes from the source of weights that its settings name."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from emocap_pretrain.config.fields import Precision
from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.tokenizer import Tokenizer, Vocabulary
from emocap_pretrain.interop.image_weights import load_image_weights
from emocap_pretrain.interop.load import load_weights
from emocap_pretrain.interop.report import LoadReport
from emocap_pretrain.interop.source import Source, source_of
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.run_folder.parent import Parent


class StartingPoint:
    """Gives a new run its tokenizer, its first weights and its parent.

    The source that `model.from` names is opened when it is first needed, and only once. So every method can raise the
    errors of opening it: `ConfigError` if the source cannot be read, `CheckpointError` if it is a run that does not
    have the checkpoint that the setting asks for, and `StoreError` if the store of this run cannot be reached.
    """

    def __init__(self, settings: ModelConfig) -> None:
        self.settings = settings

    @cached_property
    def source(self) -> Source | None:
        """Returns the source of the weights of the whole model; None if `model.from` is not set."""
        return source_of(self.settings) if self.settings.from_ is not None else None

    @property
    def parent(self) -> Parent | None:
        """Returns the checkpoint with whose weights the run begins; None if they do not come from a run."""
        return self.source.parent if self.source else None

    @property
    def text_architecture(self) -> dict[str, Any] | None:
        """Returns the description of a text tower that the settings alone cannot build; None if they can.

        Only a run whose text tower was pretrained has such a description.
        """
        found = self.source.text_architecture if self.source else None
        return dict(found) if found else None

    def tokenizer(self, train: Callable[[], Tokenizer]) -> Tokenizer:
        """Returns the tokenizer. `train` trains one on the captions, if `model.text.tokenizer` is "data".

        Raises:
            ConfigError: If a tokenizer that the settings name cannot be found or read.
        """
        return train() if self.settings.text.tokenizer == "data" else self._existing_tokenizer()

    def empty_model(self, objective: ObjectiveConfig, precision: Precision = "fp32") -> TowerPair:
        """Returns the model on the device "meta", so that it needs almost no memory.

        A tokenizer that is trained on the captions has at most as many tokens as `model.text.vocabulary` says. This
        function does not train one, and builds the model for that many tokens.
        """
        text = self.settings.text
        is_trained = text.tokenizer == "data"
        vocabulary = Vocabulary(text.vocabulary, 0) if is_trained else self._existing_tokenizer().vocabulary
        with torch.device("meta"):
            return TowerPair.of(
                self.settings,
                objective,
                vocabulary,
                precision=precision,
                weights=False,
                text_architecture=self.text_architecture,
            )

    def check(self, objective: ObjectiveConfig) -> LoadReport | None:
        """Compares the weights of `model.from` with the model, by names and shapes, before the run starts.

        Returns:
            The report; None if `model.from` is not set.

        Raises:
            ConfigError: As `load_weights` does.
        """
        if self.source is None:
            return None
        model = self.empty_model(objective)
        return load_weights(model, self.source, extend=self.settings.text.extend_positions, values=False)

    def load_into(self, model: TowerPair) -> LoadReport | None:
        """Loads the weights with which a new model begins. The model was built with the same settings.

        The weights come from `model.from` or from `model.image.pretrained`. A pretrained text tower was already built
        with its weights.

        Returns:
            The report; None if the settings name neither source.

        Raises:
            ConfigError: If the weights do not fit the model.
        """
        if self.source is not None:
            return load_weights(model, self.source, extend=self.settings.text.extend_positions)
        return load_image_weights(model.image, self.settings.image) if isinstance(model.image, TimmImageTower) else None

    def _existing_tokenizer(self) -> Tokenizer:
        named = self.settings.text.tokenizer
        return self.source.read_tokenizer() if self.source and named == "from" else Tokenizer.load(named)
