"""The result of a run, as a value and as a table for a person."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from emocap_pretrain.config.schema import Evaluation
from emocap_pretrain.config.stored import filled

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Zero-shot classification of one dataset, as shares in [0, 1].

    `counts[t][p]` are the samples of class t that were predicted as p.
    """

    url: str
    classes: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]
    uar: Share
    war: Share
    chance: Share
    majority: Share


@dataclass(frozen=True, slots=True)
class Report:
    """`report.json`: what a finished run says of itself; rank 0 writes it last."""

    name: str
    url: str
    step: Count
    seconds: Finite
    ranks: Count
    samples_per_s: Finite
    loss: Finite | None = None
    run_id: str = ""
    tracking_uri: str = ""
    zero_shot: ZeroShot | None = None
    evaluation: dict[str, Any] | None = None  # The settings of `zero_shot`; reports of 0.1.0 do not have them.

    def evaluated_with(self, settings: dict[str, Any]) -> bool:
        """Whether `zero_shot` is the result of these stored settings; nothing is asked of settings without a url."""
        if settings["url"] is None:
            return True
        if self.zero_shot is None:
            return False
        if self.evaluation is None:
            classes = settings["classes"]
            return self.zero_shot.url == settings["url"] and (not classes or self.zero_shot.classes == tuple(classes))
        return _decisive(filled(self.evaluation, Evaluation)) == _decisive(settings)

    def table(self) -> Table:
        """Two columns: what, and its value."""
        table = Table(title=f"Run {self.name}", title_justify="left", show_header=False)
        for name, value in _rows(self):
            table.add_row(name, value)
        return table

    def markdown(self) -> str:
        """The same as a Markdown table."""
        return "\n".join(f"| {name} | {value} |" for name, value in [("", self.name), ("---", "---"), *_rows(self)])


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the result depends on."""
    return {name: value for name, value in settings.items() if name != "batch"}


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("steps", f"{report.step} on {report.ranks} ranks"),
        ("training time", f"{report.seconds:.0f} s, {report.samples_per_s:.0f} samples/s"),
        ("last loss", "not finite" if report.loss is None else f"{report.loss:.3f}"),
    ]
    if report.zero_shot:
        rows += zero_shot_rows(report.zero_shot)
    return [*rows, ("run folder", report.url)]


def zero_shot_rows(result: ZeroShot) -> list[tuple[str, str]]:
    """Table rows of a zero-shot result, each beside the guess that does not look."""
    occurring = sum(any(row) for row in result.counts)
    return [
        ("zero-shot UAR", f"{result.uar:.1%}  (chance {result.chance:.1%}: {occurring} classes)"),
        ("zero-shot WAR", f"{result.war:.1%}  (majority class {result.majority:.1%})"),
        ("evaluated on", f"{sum(map(sum, result.counts))} samples of {result.url}"),
    ]
