"""Zero-shot classification: an image belongs to the class whose prompts it is closest to.

Cosines, not embeddings, are averaged over the prompts of a class (the protocol of Exp-CLIP, Zhao et al. 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from emocap_shards.sample import Sample
from emocap_shards.stream import Stream
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import Evaluation
from emocap_pretrain.encoders.pair import TowerPair
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.labels import classes_of
from emocap_pretrain.tokenizer import Tokenizer
from emocap_pretrain.transform import centre


def zero_shot(model: TowerPair, tokenizer: Tokenizer, settings: Evaluation) -> Confusion:
    """Classify every labelled sample of `settings.url`.

    Args:
        model: In evaluation mode, on any device.
        tokenizer: The model's own.
        settings: Dataset, label, classes, templates.

    Raises:
        ConfigError: If no sample has the label, or a label is not among the classes that the settings name.
    """
    if settings.url is None:
        raise ConfigError("evaluation.url is not set: give a packed dataset whose samples have labels.")
    truth: list[str] = []
    embeddings: list[Tensor] = []
    stream = Stream(url=settings.url, global_batch=settings.batch, shuffle=False, epochs=1)
    for portion in stream.steps(each=partial(_centred, pixels=model.pixels)):
        labelled = [sample for sample in portion.samples if sample.labels.get(settings.label, "") != ""]
        if labelled:
            truth += [label_text(sample.labels[settings.label]) for sample in labelled]
            embeddings.append(_embed(model, labelled))
    classes = classes_of(settings, truth)
    cosines = torch.cat(embeddings) @ _class_embeddings(model, tokenizer, settings.templates, classes)
    predicted = cosines.mean(0).argmax(1).numpy()
    names = tuple(classes)
    return Confusion.of(names, np.array([names.index(label) for label in truth]), predicted)


def _centred(sample: Sample, pixels: int) -> Sample:
    return replace(sample, image=centre(sample.image, pixels))


def _embed(model: TowerPair, samples: Sequence[Sample]) -> Float[Tensor, "samples embedding"]:
    images = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
    with torch.inference_mode():
        return model.embed_images(torch.from_numpy(images).to(model.logit_scale.device)).float().cpu()


def prompts(templates: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Every template with every word of every class."""
    return [template.replace("{}", word) for words in classes.values() for template in templates for word in words]


def _class_embeddings(
    model: TowerPair,
    tokenizer: Tokenizer,
    templates: Sequence[str],
    classes: Mapping[str, Sequence[str]],
) -> Float[Tensor, "templates embedding classes"]:
    """For each template and class the mean over the class's words."""
    device = str(model.logit_scale.device)
    columns: list[Tensor] = []
    for words in classes.values():
        texts = prompts(templates, {"": words})
        with torch.inference_mode():
            embedded = model.embed_texts(tokenizer.encode(texts, model.prompt_length).to(device)).float().cpu()
        columns.append(embedded.view(len(templates), len(words), -1).mean(1))
    return torch.stack(columns, dim=-1)
