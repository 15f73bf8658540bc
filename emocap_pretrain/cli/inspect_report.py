"""Prints the summary of a dataset on a terminal of at least 80 columns.

Every text from the dataset is printed by way of `plain` or `grid`, which replace control characters. This is necessary
because captions, labels and keys may contain escape sequences of the terminal.
"""

from collections.abc import Callable, Iterable, Mapping

from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.filter_file import PARTS, FilterFile
from emocap_shards.inspecting.counters import Counts, Spread
from emocap_shards.inspecting.faces import SheetFace
from emocap_shards.inspecting.summary import Summary
from emocap_shards.inspecting.wording import counted, number, percent, share_once, share_repeated, size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emocap_pretrain.cli.tables import bar, grid, plain, sparkline
from emocap_pretrain.terminal import console

# The most values of a label, words of a part, example faces and numeric labels that are printed.
_CLASSES, _WORDS, _FACES, _NUMBERS = 12, 16, 3, 30


def show(summary: Summary) -> None:
    """Prints the summary of a dataset as a series of tables and lines."""
    for block in _blocks(summary):
        console.print(block, soft_wrap=False)
        console.print()


def show_filter(file: FilterFile, found: DatasetFilter) -> None:
    """Prints what a filter leaves out of a dataset: how many samples and parts of captions, by reason."""
    rows = [
        (
            plain(origin.name, 30),
            plain(origin.made_by, 20),
            "" if origin.below is None else f"{origin.below:g}",
            *(f"{counts[part]:,}" for part in PARTS),
        )
        for origin, counts in zip(file.origins, file.counts(), strict=True)
    ]
    console.print(grid("Left out by the filter", ("reason", "made by", "below", *PARTS), rows, left=2))
    console.print(f"The filter {found.digest[:16]} leaves out {found.describe()}.", markup=False)


def _blocks(summary: Summary) -> Iterable[RenderableType]:
    yield _stock(summary)
    yield _looked(summary)
    if summary.looked.samples == summary.looked.damaged:  # No sample was read, so there is nothing to describe.
        return
    if summary.captions_per_image.most:
        yield _parts(summary)
        yield from _vocabularies(summary)
        yield _repeats(summary)
    yield _images(summary)
    for name, counts in summary.text_labels.items():
        yield _balance(name, counts)
    if summary.number_labels:
        yield _numbers(summary.number_labels)
    yield from map(_face, summary.faces[:: max(1, len(summary.faces) // _FACES)][:_FACES])


def _stock(summary: Summary) -> RenderableType:
    stock = summary.stock
    lines = Text(f"{plain(stock.url)}\n", style="bold")
    samples, sizes = stock.samples_per_shard, stock.bytes_per_shard
    lines.append(
        f"{counted(stock.samples, 'sample')} in {counted(stock.shards, 'shard')}, {size(stock.bytes)}", style="not bold"
    )
    lines.append(" (exact, from the manifest)\n", style="dim not bold")
    noun = "sample" if samples.most == 1 else "samples"
    each = f"a shard has {_range(samples)} {noun}, {_range(sizes, size)}"
    if stock.without_caption:
        share = "all" if stock.without_caption == stock.samples else f"{stock.without_caption:,}"
        lines.append(f"{share} of the samples have labels and no caption\n", style="not bold")
    lines.append(f"{each}\ndigest {stock.digest[:16]}", style="not bold")
    return lines


def _looked(summary: Summary) -> RenderableType:
    looked = summary.looked
    whole = looked.samples == summary.stock.samples
    share = "every one of them" if whole else f"{percent(looked.samples, summary.stock.samples)} of them, spread evenly"
    lines = Text(f"What follows comes from {counted(looked.samples, 'sample')}, {share} ({looked.seconds:.1f} s).")
    if looked.out_of_time:
        lines.append(
            f"\nThe time was up before all {looked.asked:,} were read; --seconds allows more time.", style="yellow"
        )
    if looked.damaged:
        lines.append(
            f"\n{looked.damaged:,} of them are damaged and not counted below; run `emocap verify`.", style="red"
        )
        lines.append("".join(f"\n  {plain(reason)}" for reason in looked.reasons[:3]))
    return lines


def _parts(summary: Summary) -> RenderableType:
    sound = summary.looked.samples - summary.looked.damaged
    rows = [
        (f"{name}, words", f"{part.words.count:,}", percent(part.without, sound), *_spread(part.words))
        for name, part in summary.parts.items()
    ]
    sentences, captions = summary.sentences, summary.captions_per_image
    rows.append(("caption, sentences", f"{sentences.count:,}", "", *_spread(sentences)))
    rows.append(("image, captions", f"{captions.count:,}", "", *_spread(captions)))
    columns = ("of a", "number", "without", "least", "mean", "most", "histogram")
    return grid("Captions", columns, rows)


def _vocabularies(summary: Summary) -> Iterable[RenderableType]:
    rows = [
        (name, f"{words.total:,}", f"{_floor(words)}{words.distinct:,}", share_once(words))
        for name, words in ((name, part.vocabulary) for name, part in summary.parts.items())
    ]
    yield grid("Vocabulary", ("part", "words", "different", "seen once"), rows)
    for name, part in summary.parts.items():
        words = (f"{plain(word, 30)} {count:,}" for word, count in part.vocabulary.top[:_WORDS])
        yield Text.assemble((f"{name}: ", "bold"), " · ".join(words))


def _repeats(summary: Summary) -> RenderableType:
    texts = {name: part.texts for name, part in summary.parts.items()} | {"whole caption": summary.captions}
    rows = [
        (name, f"{counts.total:,}", f"{_floor(counts)}{counts.distinct:,}", share_repeated(counts))
        for name, counts in texts.items()
    ]
    return grid("Repeated texts", ("part", "texts", "different", "repeat another"), rows)


def _images(summary: Summary) -> RenderableType:
    images = summary.images
    rows = [
        ("width, px", *_spread(images.width_px)),
        ("height, px", *_spread(images.height_px)),
        ("bytes", *_spread(images.bytes, size)),
    ]
    kinds = ", ".join(f"{kind} {percent(count, images.formats.total)}" for kind, count in images.formats.top)
    return grid(f"Images: {kinds}", ("", "least", "mean", "most", "histogram"), rows)


def _balance(name: str, counts: Counts) -> RenderableType:
    shown = counts.top[:_CLASSES]
    most = shown[0][1] if shown else 1
    rows = [
        (plain(value, 24) or "(empty)", f"{count:,}", percent(count, counts.total), bar(count / most, 30))
        for value, count in shown
    ]
    hidden = counts.distinct - len(shown)
    more = f", the {len(shown)} most frequent" if hidden else ""
    return grid(f"Label {plain(name, 30)}: {_floor(counts)}{counted(counts.distinct, 'value')}{more}", _BALANCE, rows)


_BALANCE = ("value", "samples", "share", "")


def _numbers(numbers: Mapping[str, Spread]) -> RenderableType:
    rows = [
        (plain(name, 20), f"{spread.count:,}", *_spread(spread)) for name, spread in list(numbers.items())[:_NUMBERS]
    ]
    more = f" ({_NUMBERS} of {len(numbers)})" if len(numbers) > _NUMBERS else ""
    return grid(f"Numeric labels{more}", ("label", "samples", "least", "mean", "most", "histogram"), rows)


def _face(face: SheetFace) -> RenderableType:
    drawn = Table.grid(padding=(0, 2))
    for caption in face.captions[:2]:
        drawn.add_row("global", Text(plain(caption.global_, 400)))
        for sentence in caption.local[:8]:
            drawn.add_row("local", Text(plain(sentence, 400)))
        drawn.add_row("summary", Text(plain(caption.summary, 400)))
    # This is not the table's own title, because rich would break that one at the width of a narrow table.
    return Group(Text(f"{plain(face.shard)} {plain(face.key)}", style="bold"), drawn)


def _spread(spread: Spread, form: Callable[[float], str] = number) -> tuple[str, ...]:
    """Returns four cells: the least, the mean and the largest value, and the histogram.

    `form` converts a value to the text of its cell.
    """
    return *map(form, (spread.least, spread.mean, spread.most)), sparkline(spread.bins)


def _range(spread: Spread, form: Callable[[float], str] = number) -> str:
    if spread.least == spread.most:
        return form(spread.least)
    return f"{form(spread.least)} to {form(spread.most)}"


def _floor(counts: Counts) -> str:
    # If a counter had too many different values to keep them all, their number is only a lower bound.
    return "≥ " if counts.short else ""
