"""Defines the settings of the optimizer, of the learning rate, and of the moving average of the weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emocap_pretrain.config.fields import Count, Decay, Fraction, Positive, Section, Weight


class SgdConfig(Section):
    """Holds the settings that only the optimizer `sgd` has."""

    momentum: Decay = Field(default=0.9, description="Share of the last update that the next one keeps; 0 keeps none.")
    nesterov: bool = Field(default=False, description="Nesterov's form of the momentum.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SgdConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0.")
        return self


class AdafactorConfig(Section):
    """Holds the settings that only the optimizer `adafactor` has."""

    beta2_decay: Annotated[float, Field(le=0)] = Field(
        default=-0.8, description="Exponent c of beta2 = 1 - step^c, the decay of the mean of squared gradients."
    )
    clip_threshold: Annotated[float, Field(ge=1)] = Field(
        default=1.0,
        description="Largest root mean square of the update of a parameter, before it is multiplied by lr.",
    )


class MuonConfig(Section):
    """Holds the settings that only the optimizer `muon` has."""

    momentum: Decay = Field(default=0.95, description="Decay of the momentum of matrices.")
    nesterov: bool = Field(default=True, description="Nesterov's form of the momentum of matrices.")


class OptimizerConfig(Section):
    """Configures the optimizer, its parameter groups, and the learning rate of each step."""

    name: Literal["adamw", "sgd", "adafactor", "lion", "lamb", "muon", "schedule_free"] = Field(
        default="adamw",
        description="adafactor, lamb and muon work on whole parameters and need engine.zero_stage=0. muon updates "
        "matrices, and AdamW the rest. schedule_free is AdamW that averages its weights; it needs schedule=constant.",
    )
    lr: float = Field(default=5e-4, gt=0, description="Learning rate at the end of the warm-up.")
    lr_scales: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Factors of lr for parts of the model by their module names, such as {image.backbone: 0.1}. The "
        "longest name that matches a parameter counts.",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Factor of lr from each layer of a tower to the one before it. Below 1, the layers next to the "
        "pixels and tokens learn most slowly.",
    )
    betas: tuple[Decay, Decay] = Field(
        default=(0.9, 0.98),
        description="Decays of the moments of adamw and lamb, and for lion those of the update and of the momentum. "
        "muon uses them for AdamW. For schedule_free the first one is the share of the average in the weights at which "
        "gradients are computed.",
    )
    eps: float = Field(
        default=1e-6, gt=0, description="Term that is added to the denominator of adamw, lamb, muon and schedule_free."
    )
    sgd: SgdConfig = Field(default=SgdConfig(), description="Settings that only sgd has.")
    adafactor: AdafactorConfig = Field(default=AdafactorConfig(), description="Settings that only adafactor has.")
    muon: MuonConfig = Field(default=MuonConfig(), description="Settings that only muon has.")
    weight_decay: Weight = Field(
        default=0.2,
        description="Weight decay of matrices; vectors have none. sgd adds it to the gradient, lamb and "
        "schedule_free to the update, and the others shrink the weights by it.",
    )
    decay_embeddings: bool = Field(
        default=True, description="Whether the embeddings of tokens and positions have weight decay too."
    )
    warmup_steps: Count = Field(default=500, description="Steps in which the learning rate grows linearly to lr.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine",
        description="Learning rate after the warm-up: cosine falls over all steps, wsd stays at lr and falls in the "
        "last decay_steps, constant stays at lr.",
    )
    final_share: Fraction = Field(
        default=0.0, description="Learning rate of the last step as a share of `lr`, for cosine and wsd."
    )
    decay_steps: Positive | None = Field(
        default=None, description="Steps of the decay of wsd; default a fifth of all steps."
    )
    decay_shape: Literal["linear", "sqrt"] = Field(
        default="linear",
        description="Form of the decay of wsd. After the share p of its steps, linear leaves 1 - p of lr, and sqrt "
        "1 - sqrt(p).",
    )
    clip_norm: Weight = Field(default=1.0, description="Largest norm of the whole gradient; 0 never clips.")

    @model_validator(mode="after")
    def _has_no_settings_of_another_optimizer(self) -> "OptimizerConfig":
        for key, owners in _OWNERS.items():
            if self.name not in owners and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to name={', '.join(owners)}, and name is {self.name}: leave it out.")
        return self

    @model_validator(mode="after")
    def _schedule_free_has_no_schedule(self) -> "OptimizerConfig":
        if self.name == "schedule_free":
            if self.schedule != "constant":
                raise ValueError(
                    f"name=schedule_free takes the place of the schedule {self.schedule}: set schedule=constant."
                )
            if not self.betas[0]:
                raise ValueError("name=schedule_free needs betas whose first value is above 0, such as 0.9.")
        return self

    @model_validator(mode="after")
    def _has_no_settings_of_another_schedule(self) -> "OptimizerConfig":
        for key, owners in _SCHEDULES.items():
            if self.schedule not in owners and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} belongs to schedule={' and '.join(owners)}, and schedule is {self.schedule}: leave it out."
                )
        return self


# Settings that only some optimizers have. For another optimizer they must keep their defaults, so that no setting is
# without an effect.
_OWNERS = {
    "betas": ("adamw", "lion", "lamb", "muon", "schedule_free"),
    "eps": ("adamw", "lamb", "muon", "schedule_free"),
    "sgd": ("sgd",),
    "adafactor": ("adafactor",),
    "muon": ("muon",),
}
_SCHEDULES = {"final_share": ("cosine", "wsd"), "decay_steps": ("wsd",), "decay_shape": ("wsd",)}


class EmaConfig(Section):
    """Configures the moving average (EMA) of the trained weights."""

    decay: Decay = Field(
        default=0.9998, description="Share of the average that each update of the weights keeps, after the warm-up."
    )
    warmup: bool = Field(
        default=True,
        description="Whether the decay is at most (1 + n) / (10 + n) after n updates, so that the average forgets the "
        "first weights.",
    )
