"""Writes the model card of an export: the model, its use, its training data, its results, its limits and its origin.

Names, addresses and results come from documents of the run, which somebody else may have written. `inert` makes each of
them a code span: it can neither form a link, an image or HTML in the card, nor begin a new line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from emocap_shards.printable import printable
from torch import nn

from emocap_pretrain.config.stored import data_urls
from emocap_pretrain.interop.export.formats import ExportFormat
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.run_folder.results import WEIGHTS_TITLES

CARD = "README.md"
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Holds facts about the run for the card, which the restored model does not contain.

    Attributes:
        results: Names and values of the scores in the run's report; empty if this step has no report.
        data_license: The licence of the training data; empty if it is not known.
        parent: The run with whose weights this run began, or of which it is a copy; empty if there is none.
    """

    results: Sequence[tuple[str, str]] = ()
    data_license: str = ""
    parent: str = ""


def inert(value: object) -> str:
    """Returns a Markdown code span with a text, in one line and without control characters.

    A backtick is replaced by an apostrophe, a vertical bar gets a backslash, and a text of more than 300 characters is
    cut.

    >>> inert("<b> [a](javascript:b)")
    '`<b> [a](javascript:b)`'
    """
    text = printable(str(value)).replace("`", "'").replace("|", r"\|")
    return f"`{text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}`"


def card(
    restored: Restored,
    kind: ExportFormat,
    facts: CardFacts,
    differences: Mapping[str, float],
    versions: Mapping[str, str],
) -> str:
    """Returns the text of the card, in Markdown with the header that model hubs read."""
    config = restored.config
    sections = [
        _HEADER,
        f"# {config.name}, step {restored.step}",
        _INTRODUCTION,
        _table(("Part", "Value"), _parts(restored)),
        f"## Use\n\n{kind.about} The following lines are run in this folder.",
        f"```python\n{kind.loading.format(pixels=restored.model.pixels).strip()}\n```",
        _tokens(restored),
        *(f"- {line}" for line in kind.lacks(restored)),
        "## Training data",
        _table(("Part", "Value"), _data(config.stored()["data"], restored.data_digest, facts.data_license)),
        "## Results",
        _results(facts.results),
        _USE_AND_LIMITS,
        "## Comparison",
        _COMPARISON.format(library=kind.library),
        _table(("Result", "Largest difference"), [(name, f"{value:.1e}") for name, value in differences.items()]),
        "## Origin",
        _table(("Part", "Value"), [*_origin(restored, facts), *versions.items()]),
    ]
    return "\n\n".join(sections) + "\n"


def _parts(restored: Restored) -> list[tuple[str, object]]:
    model, config = restored.model, restored.config.model
    image, text = cast("nn.Module", model.image), cast("nn.Module", model.text)
    encoder = getattr(text, "backbone", text)
    return [
        ("image tower", f"{config.image.name} of timm, {_parameters(image)}"),
        ("text tower", f"{type(encoder).__name__} with the pooling {config.text.pooling}, {_parameters(text)}"),
        ("weights", WEIGHTS_TITLES[restored.weights]),
        ("images", f"{model.pixels} x {model.pixels} pixels"),
        ("size of a vector", model.to_text.out_features),
        ("started from", last_parts(config.from_)),
        ("pretrained image weights", last_parts(config.image.pretrained)),
        ("pretrained text weights", last_parts(config.text.pretrained)),
    ]


def _parameters(module: nn.Module) -> str:
    return f"{sum(each.numel() for each in module.parameters()):,} parameters"


def _data(stored: Mapping[str, Any], digest: str, licence: str) -> list[tuple[str, object]]:
    """Returns the rows about the training data. `stored` is the section `data` of `Config.stored`."""
    of = "names of the tars" if stored.get("webdataset") else "manifests"
    return [
        *(("dataset", last_parts(address)) for address in data_urls(stored)),
        (f"digest of the {of}", digest or "not recorded"),
        ("licence", licence or "not recorded: ask whoever made the dataset before you share this model"),
    ]


def _results(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return "The run has no report of this step: evaluate it with `emocap evaluate`."
    return _table(("Score", "Value"), rows)


def _origin(restored: Restored, facts: CardFacts) -> list[tuple[str, object]]:
    return [
        ("MLflow's id of the run", restored.run_id or "not recorded"),
        ("parent", facts.parent or "none"),
        ("objective", str(restored.config.objective.kind)),
    ]


def _tokens(restored: Restored) -> str:
    return (
        f"The tokenizer cuts a text to {restored.model.prompt_length} tokens. The square in the middle of an image is "
        "cropped and then resized with an antialiased bicubic filter."
    )


def last_parts(address: Any) -> str:
    """Returns the last two parts of a path or URL, because the first ones may name a person; "none" for None."""
    return "none" if address is None else "/".join(str(address).rstrip("/").split("/")[-2:])


def _table(head: tuple[str, str], rows: Sequence[tuple[object, object]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {inert(name)} | {inert(value)} |" for name, value in rows)])


_HEADER = """\
---
tags:
- clip
- facial-expression
- emocap
---"""
_INTRODUCTION = """\
This model maps images of faces and English sentences to unit vectors. The vector of an image is close to those of the
sentences that describe its facial expression. It was trained with emocap_pretrain on captions of facial emotion."""
_COMPARISON = """\
Before the export was accepted, {library} loaded it in a separate process. The table shows the largest differences from
the results of the trained model: absolute differences of unit vectors, and relative differences of scales and biases.
The row `photo` is about images that are not square, which the library crops and resizes itself. All other images
already have the size that the model reads."""
_USE_AND_LIMITS = """\
## Intended use and limits

The model is for research on facial expressions: for search by text, for classification with prompts, and as a starting
point for other models.

- The model describes how a face looks. It does not know what a person feels: people show the same emotion in different
  ways, and the same expression for different reasons.
- Its vectors reflect its training data, with all errors and with every imbalance of age, sex, skin and culture. Its
  results on other faces may be far worse than those above. Measure them for each group before any use.
- It expects one face that fills most of the image. It does not find faces.
- Do not use it for decisions about people, such as in hiring, teaching, policing, insurance or medicine. In the
  European Union, systems that infer emotions at work or in education are prohibited, except for medical or safety
  reasons (Regulation (EU) 2024/1689, article 5).
- Faces are personal data. Process them only with a legal basis, and in general with the consent of the person."""
