"""Defines `emocap caption faces`, which asks the model of an endpoint for captions of faces that have none.

The package `captioning` does the work. This module converts the options, and shows progress and results.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from emocap_shards.inspecting.wording import counted
from tqdm import tqdm

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import STOPPED, console, errors_as_lines

if TYPE_CHECKING:
    from emocap_shards.writing.row_source import RowSource

    from emocap_pretrain.captioning.endpoint import RequestLimits, SamplingSettings, TokenPrices
    from emocap_pretrain.captioning.prompt import CaptionPrompt
    from emocap_pretrain.captioning.run import CaptioningReport, CaptioningSettings
    from emocap_pretrain.captioning.table import CaptionTable

JOURNAL = "answers.journal"
_LINE_EVERY_S = 60.0  # Seconds between two lines of progress in a log.


def _option(panel: str, *names: str, about: str, **rules: float) -> object:
    return typer.Option(*names, help=about, rich_help_panel=panel, **rules)  # pyright: ignore[reportArgumentType]


_SAMPLING, _LIMITS, _PRICES, _COLUMNS = "Sampling", "Limits", "Prices", "Columns of a table"


@dataclass(frozen=True, slots=True)
class _CaptioningRequest:
    """The options, after their conversion."""

    source: "RowSource"
    out: Path
    endpoint: str
    key_env: str
    plain_http: bool
    model: str
    prompt: "CaptionPrompt"
    sampling: "SamplingSettings"
    limits: "RequestLimits"
    prices: "TokenPrices"
    settings: "CaptioningSettings"
    stream: bool
    schema: bool


def faces_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    source: Annotated[
        str, typer.Argument(metavar="FACES", help="A packed dataset, a folder of images, a table or tars.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the answers and the table of captions.")],
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="URL of the endpoint, such as http://127.0.0.1:8000/v1.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the model at the endpoint.")],
    key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with the key; default no key is sent.")
    ] = "",
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Allow http without encryption to another host.")
    ] = False,
    prompt: Annotated[str, typer.Option(metavar="NAME", help="A prompt, or a file of yours: NAME.toml.")] = "faces",
    fact: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Label to send as a known fact, such as emotion or 'AU*'; can be repeated."),
    ] = None,
    asks: Annotated[int, typer.Option(help="Requests for a face at most, if its answers are unusable.", min=1)] = 3,
    longest_px: Annotated[int, typer.Option(help="Shrink the longer side of sent images to this.", min=16)] = 768,
    most_faces: Annotated[int | None, typer.Option(help="Look only at the first faces.", min=1)] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Stream the replies.")] = True,
    schema: Annotated[bool, typer.Option("--schema/--no-schema", help="Let the endpoint enforce the form.")] = True,
    max_tokens: Annotated[int, _option(_SAMPLING, about="Tokens of an answer at most.", min=1)] = 1000,
    temperature: Annotated[float | None, _option(_SAMPLING, about="Default that of the endpoint.", min=0)] = None,
    top_p: Annotated[float | None, _option(_SAMPLING, about="Default that of the endpoint.", min=0, max=1)] = None,
    seed: Annotated[int | None, _option(_SAMPLING, about="Seed of the sampling.")] = None,
    concurrency: Annotated[int, _option(_LIMITS, about="Requests at the same time.", min=1, max=4096)] = 64,
    requests_per_minute: Annotated[int | None, _option(_LIMITS, about="Default no limit.", min=1)] = None,
    tokens_per_minute: Annotated[int | None, _option(_LIMITS, about="Default no limit.", min=1)] = None,
    timeout: Annotated[float, _option(_LIMITS, about="Seconds in which a reply must be complete.", min=1)] = 300,
    retries: Annotated[int, _option(_LIMITS, about="Further attempts of a request that fails.", min=0)] = 6,
    most_cost: Annotated[float | None, _option(_LIMITS, about="Stop once the answers cost that much.", min=0)] = None,
    price_prompt: Annotated[float | None, _option(_PRICES, about="A million tokens of prompts.", min=0)] = None,
    price_completion: Annotated[float | None, _option(_PRICES, about="A million tokens of answers.", min=0)] = None,
    price_cached: Annotated[float | None, _option(_PRICES, about="A million cached tokens.", min=0)] = None,
    image: Annotated[str, _option(_COLUMNS, about="Path or bytes of the image.")] = "",
    key: Annotated[str, _option(_COLUMNS, about="Key; default the image's path.")] = "",
    label: Annotated[list[str] | None, _option(_COLUMNS, about="A label; can be repeated.")] = None,
    image_root: Annotated[Path | None, _option(_COLUMNS, about="Folder to which paths are relative.")] = None,
    debug: Debug = False,
) -> None:
    """Ask the model of an endpoint for captions of faces: a global sentence, sentences of regions, and a summary.

    The endpoint speaks the chat completions of OpenAI, as vLLM does. Every answer is stored before it is used. The same
    command resumes an interrupted one, and asks for no stored answer again.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.captioning.endpoint import RequestLimits, SamplingSettings, TokenPrices
        from emocap_pretrain.captioning.faces import open_faces
        from emocap_pretrain.captioning.prompt import check_fact, read_prompt
        from emocap_pretrain.captioning.run import CaptioningSettings

        facts = tuple(fact or ())
        for name in facts:
            check_fact(name)
        prices = TokenPrices(prompt=price_prompt, completion=price_completion, cached=price_cached)
        if most_cost is not None and prices.prompt is None:
            raise ConfigError("--most-cost needs --price-prompt and --price-completion, which say what tokens cost.")
        found = read_prompt(prompt)
        request = _CaptioningRequest(
            source=open_faces(source, image=image, key=key, labels=label or (), image_root=image_root),
            out=_folder(out),
            endpoint=endpoint,
            key_env=key_env,
            plain_http=plain_http,
            model=model,
            prompt=found,
            sampling=SamplingSettings(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed),
            limits=RequestLimits(
                requests=requests_per_minute, tokens=tokens_per_minute, timeout_s=timeout, retries=retries
            ),
            prices=prices,
            settings=CaptioningSettings(
                prompt=found.title,
                concurrency=concurrency,
                asks=asks,
                facts=facts,
                longest_px=longest_px,
                most_cost=most_cost,
                most_faces=most_faces,
            ),
            stream=stream,
            schema=schema,
        )
        if _caption(request):
            sys.exit(STOPPED)


def _folder(out: Path) -> Path:
    if "://" in str(out):
        raise ConfigError(f"{out}: the output is a folder on a disk; write it there, and pack it to the URL.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder.")
    return out


def _caption(request: _CaptioningRequest) -> bool:
    """Captions the faces, writes the table, and prints a summary. Returns whether the limit of costs has ended it."""
    import asyncio

    from emocap_pretrain.captioning.chat import EndpointAddress, open_endpoint
    from emocap_pretrain.captioning.endpoint import EndpointCaptioner
    from emocap_pretrain.captioning.journal import open_journal
    from emocap_pretrain.captioning.run import CaptioningRun
    from emocap_pretrain.captioning.table import CaptionTable

    address = EndpointAddress(url=request.endpoint, key_env=request.key_env, plain_http=request.plain_http)
    journal = open_journal(request.out / JOURNAL)
    try:
        table = CaptionTable(journal)
        facts = ", ".join(request.settings.facts)
        sent = f"with the labels {facts}" if facts else "without labels"
        console.print(f"images go to {address.completions} (model {request.model}), {sent}.")

        async def run(bar: "CaptioningBar") -> CaptioningRun:
            async with open_endpoint(address, concurrency=request.settings.concurrency) as endpoint:
                captioner = EndpointCaptioner(
                    endpoint,
                    request.model,
                    request.prompt,
                    sampling=request.sampling,
                    prices=request.prices,
                    limits=request.limits,
                    stream=request.stream,
                    schema=request.schema,
                )
                made = CaptioningRun(captioner, journal, request.settings, bar.show, table.note)
                await made.caption(request.source.rows())
                return made

        with CaptioningBar(_total(request)) as bar:
            made = asyncio.run(run(bar))
        about = {"endpoint": address.completions, "model": request.model, "prompt": request.prompt.title}
        about |= {"prompt_digest": request.prompt.digest}
        table.write(request.source, request.out, about)
        _summarise(request, made.report, table)
        if made.stopped_at_cost:
            console.print(f"stopped at --most-cost {request.settings.most_cost:g}: the same command with more resumes.")
        return made.stopped_at_cost
    finally:
        journal.close()


def _total(request: _CaptioningRequest) -> int | None:
    """Returns the number of rows of the source; None if it is unknown without reading the images."""
    from emocap_shards.writing.row_source import CountedSource

    from emocap_pretrain.captioning.faces import PlainFolder

    source, most = request.source, request.settings.most_faces
    if isinstance(source, CountedSource):
        total = source.total
    elif isinstance(source, PlainFolder):
        total = sum(1 for _ in source.rows())
    else:
        return most
    return total if most is None else min(total, most)


class CaptioningBar(AbstractContextManager["CaptioningBar"]):
    """Shows how many faces are done, the rate, the remaining time and the cost; in a log, a line every minute."""

    def __init__(self, total: int | None) -> None:
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, desc="captioning", unit=" faces", disable=None, smoothing=0.1, dynamic_ncols=True, leave=False
        )
        self._total, self._begun = total, time.monotonic()
        self._said = self._begun

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, report: "CaptioningReport") -> None:
        note = _note(report)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(report.finished - self._bar.n)
        now = time.monotonic()
        if not self._bar.disable or now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        rate = (report.finished - report.stored) / (now - self._begun)
        left = f", {_left(self._total - report.finished, rate)} left" if self._total and rate else ""
        console.print(f"{counted(report.finished, 'face')}, {rate:.1f} faces/s, {note}{left}")


def _left(faces: int, rate: float) -> str:
    from emocap_pretrain.terminal import duration

    return duration(max(0, faces) / rate)


def _note(report: "CaptioningReport") -> str:
    parts = [f"{report.captioned:,} captioned"]
    without = sum(report.reasons.values())
    parts += [f"{without:,} without a caption"] if without else []
    parts += [f"{report.unanswered:,} unanswered"] if report.unanswered else []
    parts += [f"cost {_cost(report)}"] if report.cost else []
    return ", ".join(parts)


def _cost(report: "CaptioningReport") -> str:
    least = " at least" if report.unknown_costs else ""
    return f"{report.cost:.4g}{least}"


def _summarise(request: _CaptioningRequest, report: "CaptioningReport", table: "CaptionTable") -> None:
    from emocap_pretrain.captioning.answers import REASONS
    from emocap_pretrain.captioning.table import LEFT_OUT, TABLE

    path = request.out / TABLE
    console.print(
        f"{path}: {counted(table.written, 'face')} with captions, {report.captioned:,} of them from this start."
    )
    words = {
        **REASONS,
        "no_answer": "no answer has arrived; the same command asks again",
        "unreadable_row": "the row cannot be read",
    }
    for reason, count in table.reasons.most_common():
        console.print(f"left out ({LEFT_OUT}): {count:,} x {words.get(reason, reason)}")
    if report.last_failure:
        console.print(f"the last face without an answer: {tables.plain(report.last_failure, 300)}")
    if report.repeated:
        console.print(
            f"{counted(report.repeated, 'request')} of an earlier start had no stored answer, and {_were(report)} sent "
            "again."
        )
    _show_usage(report)
    if table.written:
        words_of_pack = ["emocap", "pack", str(path), "DATASET", *_image_root(request.source)]
        console.print(f"pack them: {shlex.join(words_of_pack)}")


def _were(report: "CaptioningReport") -> str:
    return "was" if report.repeated == 1 else "were"


def _show_usage(report: "CaptioningReport") -> None:
    if not report.prompt_tokens:
        return
    cached, cost = f"{report.cached_tokens:,} cached", _cost(report) if report.cost else "unknown"
    console.print(
        f"tokens: {report.prompt_tokens:,} of prompts ({cached}), {report.completion_tokens:,} of answers; cost {cost}."
    )
    if report.unusable:
        console.print(f"{counted(report.unusable, 'answer')} could not be used.")
    for repair, count in report.repairs.most_common():
        console.print(f"removed around the JSON: {count:,} x {repair}")


def _image_root(source: "RowSource") -> Sequence[str]:
    """Returns the option of `emocap pack` that says where the images are, if the table has their paths."""
    from emocap_shards.writing.row import LocalFile, SourceRow

    first = next((row for row in source.rows() if isinstance(row, SourceRow)), None)
    return ("--image-root", first.image.root) if first and isinstance(first.image, LocalFile) else ()
