"""Defines `emocap doctor`, which checks whether this host and the services of a run are fit for training.

`emocap_pretrain.doctor` makes the checks. This module derives their inputs from a config and formats their results.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.wording import wrapped

from emocap_pretrain.cli import options
from emocap_pretrain.cli.tables import plain
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import EmocapError
from emocap_pretrain.terminal import FAILED, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.doctor import CheckResult, DoctorInputs

LOCK = Path(__file__).parents[2] / "requirements.lock"  # Only a checkout has it; an installed package does not.
_STATUS, _NAME = 9, 15  # Widths of the first two columns.


def command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run; its services are checked too.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value; overrides the file.")] = None,
    lock: Annotated[
        Path | None,
        typer.Option(help="List of versions to compare with: a requirements file, or another host's pip freeze."),
    ] = None,
    probe_bytes: Annotated[
        int, typer.Option(parser=options.byte_size, metavar="SIZE", help="Bytes to read from each dataset (32MB).")
    ] = 32_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Check this host, its versions, and the services of a run, and say what to do. Exit code 1 if a check fails."""
    with errors_as_lines(debug=debug):
        loaded = load(config, overrides or []) if config else None
        found: list[tuple[str, CheckResult]] = []
        for name, result in _results(loaded, lock or (LOCK if LOCK.is_file() else None), probe_bytes):
            found.append((name, result))
            if not as_json:
                for line in lines(name, result):
                    console.print(line)
        counts = Counter(result.status for _, result in found)
        if as_json:
            say_json({"failed": counts["fail"], "warnings": counts["warn"], "checks": [_tree(*each) for each in found]})
        else:
            console.print(_summary(counts))
        raise typer.Exit(FAILED if counts["fail"] else 0)


def _results(config: Config | None, lock: Path | None, probe_bytes: int) -> "Iterator[tuple[str, CheckResult]]":
    """Yields the name and the result of each check. Those of the config come first, because others depend on it."""
    from emocap_pretrain.doctor import CheckResult, diagnose

    completed = None
    if config:
        from emocap_pretrain.interop.settings import completed as complete

        try:
            completed = complete(config)
        except (EmocapError, ShardsError) as error:
            yield "config", CheckResult("fail", str(error), "correct it; `emocap pretrain --dry-run` checks more")
        else:
            yield "config", CheckResult("ok", f"{config.name} can be read; --dry-run checks its settings")
    yield from diagnose(inputs_of(config, completed, lock=lock, probe_bytes=probe_bytes))


def inputs_of(
    config: Config | None, completed: Config | None = None, *, lock: Path | None, probe_bytes: int
) -> "DoctorInputs":
    """Returns what the checks examine for this config.

    Args:
        config: The config of the user; None checks the host alone.
        completed: The config with the settings of its weights. Without it, the size of a checkpoint is unknown.
        lock: The list of versions to compare with.
        probe_bytes: Largest number of bytes that are read from each dataset.
    """
    from emocap_pretrain.doctor import DoctorInputs

    if config is None:
        return DoctorInputs(lock=lock, probe_bytes=probe_bytes)
    datasets = config.data.urls_by_key
    evaluation = config.evaluation
    for name, url in (
        ("url", evaluation.url),
        ("train_url", evaluation.train_url),
        ("valid_url", evaluation.valid_url),
    ):
        if url and url not in datasets.values():
            datasets[f"evaluation.{name}"] = url
    pixels = (completed or config).model.image.pixels
    return DoctorInputs(
        cluster=config.cluster,
        url=config.url,
        datasets=datasets,
        data=config.data,
        tracking=config.tracking,
        checkpoint_bytes=_checkpoint_bytes(completed) if completed else None,
        keep_last=config.checkpoint.keep_last,
        batch_bytes=config.global_batch * 3 * pixels * pixels,
        probe_bytes=probe_bytes,
        lock=lock,
    )


def _checkpoint_bytes(config: Config) -> int | None:
    """Returns the size of a checkpoint: the weights and the optimizer's state; None if the model cannot be built."""
    from emocap_pretrain.dry_run.memory import FLOAT, empty_model
    from emocap_pretrain.training.ema import with_average
    from emocap_pretrain.training.optimizer import optimizer_of, parameter_groups

    try:
        model = empty_model(config)
        groups = parameter_groups(model, config.optimizer)
        optimizer = with_average(optimizer_of(config.optimizer, config.engine.zero_stage), config.ema)
    except EmocapError:  # `--dry-run` reports it.
        return None
    numbers = (optimizer.state_elements(each, group.options) for group in groups for each in group.parameters.values())
    return FLOAT * (sum(each.numel() for each in model.parameters()) + sum(numbers))


def lines(name: str, result: "CheckResult") -> list[str]:
    """Returns the lines of at most 80 characters that show a result: what was found, and below it what to do.

    A word that is longer than a line, such as a URL, is not broken.
    """
    left = " " * (_STATUS + _NAME)
    # Secrets are masked before the text is broken into lines, because a mask would not find the parts of a secret.
    found, cure = plain(result.text), plain(result.cure)
    first = f"{result.status:<{_STATUS}}{name:<{_NAME}}"
    return [
        *wrapped(found, first),
        *(wrapped(cure, f"{left}-> ") if cure else []),
    ]


def _summary(counts: Counter[str]) -> str:
    passed, warned, failed, left = (counts[each] for each in ("ok", "warn", "fail", "skipped"))
    return f"{passed} ok, {warned} to look at, {failed} failed, {left} skipped"


def _tree(name: str, result: "CheckResult") -> dict[str, str]:
    return {"check": name, "status": result.status, "text": result.text, "cure": result.cure}
