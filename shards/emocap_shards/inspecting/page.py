"""Formats a summary as one page of HTML, which loads nothing from the network and contains no script."""

import base64
from typing import Any

from emocap_shards.inspecting.faces import SheetFace
from emocap_shards.inspecting.findings import MOST_NOTES, CheckedDataset
from emocap_shards.inspecting.html import rendered, shared_style
from emocap_shards.inspecting.plots import HEIGHT, WIDTH, balance, histogram
from emocap_shards.inspecting.summary import Summary
from emocap_shards.inspecting.wording import number, percent, share_once, share_repeated, size
from emocap_shards.sample import Caption

_CLASSES, _NUMBERS, _WORDS, _TEXTS = 24, 60, 40, 8
_CAPTIONS, _SENTENCES, _CHARACTERS, _LABELS, _CLASSES_BESIDE = 3, 12, 600, 60, 4


def page(summary: Summary, checked: CheckedDataset | None = None) -> str:
    """Returns the summary as an HTML page, with the findings of checks if there are any.

    Text from the data is escaped, and long text is cut. Such text cannot run as a script, because the
    Content-Security-Policy of the page forbids all scripts. The policy also forbids that the page loads anything from
    an address; only images that are part of the page are allowed.
    """
    filters = {
        "number": number,
        "size": size,
        "percent": percent,
        "cut": _cut,
        "share_once": share_once,
        "share_repeated": share_repeated,
    }
    return rendered(("emocap_shards", "inspecting"), "page.html", shared_style(), _values(summary, checked), filters)


def _values(summary: Summary, checked: CheckedDataset | None) -> dict[str, Any]:
    """Returns the variables of the template."""
    parts = summary.parts
    per_image = [
        histogram("local sentences", summary.sentences, "in a caption"),
        histogram("captions", summary.captions_per_image, "of an image"),
    ]
    images = summary.images
    return {
        "summary": summary,
        "sound": summary.looked.samples - summary.looked.damaged,
        "lengths": [histogram(name, part.words, "words in a text") for name, part in parts.items()] + per_image,
        "sizes": [
            histogram("width", images.width_px, "pixels"),
            histogram("height", images.height_px, "pixels"),
            histogram("file size", images.bytes, "bytes"),
        ],
        "shards": histogram("samples in a shard", summary.stock.samples_per_shard),
        "balances": [balance(name, counts, _CLASSES) for name, counts in summary.text_labels.items()],
        "numbers": [histogram(name, spread) for name, spread in list(summary.number_labels.items())[:_NUMBERS]],
        "repeats": {name: part.texts for name, part in parts.items()} | {"complete caption": summary.captions},
        "cards": [_card(face, checked) for face in summary.faces],
        "tallies": checked.tallies if checked else (),
        "most_words": _WORDS,
        "most_texts": _TEXTS,
        "plot_width": WIDTH,
        "plot_height": HEIGHT,
    }


def _card(face: SheetFace, checked: CheckedDataset | None) -> dict[str, Any]:
    """Returns the variables with which the template shows one face."""
    labels = list(face.labels.items())[:_LABELS]
    notes = checked.notes.get(face.key, ()) if checked else ()
    return {
        "notes": [_cut(note) for note in notes[:MOST_NOTES]],
        "further_notes": max(0, len(notes) - MOST_NOTES),
        "shard": face.shard,
        "key": face.key,
        "source": "data:image/jpeg;base64," + base64.b64encode(face.jpeg).decode(),
        "captions": [_short(caption) for caption in face.captions[:_CAPTIONS]],
        "further": max(0, len(face.captions) - _CAPTIONS),
        "labels": {_cut(name): _cut(value) if isinstance(value, str) else number(value) for name, value in labels},
        "classes": [_cut(value, 40) for _, value in labels if isinstance(value, str)][:_CLASSES_BESIDE],
    }


def _short(caption: Caption) -> Caption:
    """Returns the caption for the page: long texts are cut, and the number of local sentences is limited."""
    local = tuple(_cut(sentence) for sentence in caption.local[:_SENTENCES])
    return Caption(_cut(caption.global_), local, _cut(caption.summary))


def _cut(text: str, most: int = _CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
