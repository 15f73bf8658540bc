"""Reports how the weights of a source were loaded into a model, as a table for the user."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from emocap_pretrain.model.weights import listed

COLUMNS = 80
_LABEL = 10  # Width of the first column.


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Records which tensors of a source were loaded, and where every parameter of the model got its values.

    There is a report only if nothing is missing: a parameter that needs weights and gets none is an error.

    Attributes:
        key: The setting that names the source.
        source: The value of this setting.
        layout: The name of the source's layout.
        loaded: Names of our parameters that got weights of the source.
        resized: Tensors that were resized, each with its old and its new shape.
        copied: Parameters that began as a copy of others, such as "to_patch.weight from to_image.weight".
        fresh: Parameters that have no weights in the source and keep their initial values.
        left_out: Tensors of the source that the model does not need.
        remarks: Sentences for the user about the values of the weights.
    """

    key: str
    source: str
    layout: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """Returns the report as short lines, for weights of an image tower alone."""
        rows = (("resized", self.resized), ("copied", self.copied), ("new", self.fresh), ("left out", self.left_out))
        head = f"{self.key}={self.source} ({self.layout}): {len(self.loaded)} tensors are loaded"
        counts = (f"{self.key}: {len(names)} {what}: {listed(names)}" for what, names in rows if names)
        return (head, *counts, *self.remarks)

    def table(self) -> str:
        """Returns the report as a table of at most `COLUMNS` columns. Only the name of the source may be longer."""
        rows = (
            ("loaded", len(self.loaded), _by_part(self.loaded)),
            ("resized", len(self.resized), listed(self.resized)),
            ("copied", len(self.copied), listed(self.copied)),
            ("new", len(self.fresh), listed(self.fresh)),
            ("left out", len(self.left_out), listed(self.left_out)),
            ("missing", 0, ""),
        )
        lines = [f"Weights: {self.key}={self.source}", f"  {self.layout}"]
        for what, count, names in rows:
            lines += _wrapped(f"{what:<{_LABEL}}{count:>4}  {names}", indent=_LABEL + 6)
        for remark in self.remarks:
            lines += _wrapped(f"{'note':<{_LABEL}}{'':>4}  {remark}", indent=_LABEL + 6)
        return "\n".join(lines)


def _wrapped(line: str, *, indent: int) -> list[str]:
    return textwrap.wrap(
        line,
        COLUMNS,
        initial_indent="  ",
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _by_part(names: Iterable[str]) -> str:
    """Returns the numbers of tensors by the part of the model, such as "image 36, text 38, to_image 1"."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} {count}" for part, count in counts.items())
