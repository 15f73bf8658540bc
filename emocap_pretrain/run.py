"""The main door: `python -m emocap_pretrain.run cfg.yaml [dotted.key=value ...] [--dry-run] [--debug]`.

Started by a person or by `ray job submit` it puts one rank on every device through Ray; started by a launcher that made
this process a rank already (deepspeed, torchrun, srun) it is that rank. Both call the same training function.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from emocap_shards.manifest import read_manifest

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.runtime import EnvRuntime, Runtime, launched
from emocap_pretrain.terminal import console, errors_as_lines, show_logs

RANKS_WITHOUT_GPU = 2
RANK_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}


def command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")] = Path("cfg.yaml"),
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, wins over the file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and the plan, then stop.")
    ] = False,
    step_seconds: Annotated[
        float | None, typer.Option(min=1e-6, help="For --dry-run: a step of one rank alone, as measured.")
    ] = None,
    fabric: Annotated[
        str | None, typer.Option(help="For --dry-run: ib400, eth100, or RANKS_PER_NODE,INSIDE,BETWEEN in GB/s.")
    ] = None,
    node_mtbf_days: Annotated[
        float, typer.Option(min=1e-3, help="For --dry-run: between failures of one node.")
    ] = 30.0,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train a run from wherever it stands: new, or from its newest checkpoint."""
    show_logs()
    with errors_as_lines(debug=debug):
        loaded = load(config, overrides or [])
        if dry_run:
            _print_plan(loaded, step_seconds, fabric, node_mtbf_days)
        elif launched():
            _as_rank(loaded)
        else:
            _on_ray(loaded)


def _ranks(config: Config, gpus: int) -> tuple[int, bool]:
    """How many processes the job has where there are so many GPUs, and whether each holds one."""
    settings = config.cluster
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and gpus > 0)
    if settings.ranks != "auto":
        return settings.ranks, on_gpu
    if on_gpu and not gpus:
        raise ConfigError("cluster.device=cuda, but there is no GPU: set it to auto or cpu, or say cluster.ranks.")
    return gpus if on_gpu else RANKS_WITHOUT_GPU, on_gpu


def _print_plan(config: Config, step_s: float | None, fabric: str | None, node_mtbf_days: float) -> None:
    import torch

    from emocap_pretrain.forecast.fabric import fabric_of
    from emocap_pretrain.forecast.outlook import Assumed
    from emocap_pretrain.plan import Plan

    ranks, on_gpu = _ranks(config, torch.cuda.device_count())
    assumed = Assumed(fabric_of(fabric) if fabric else None, step_s, node_mtbf_days)
    sys.stdout.write(Plan.of(config, ranks, on_gpu=on_gpu, assumed=assumed).text() + "\n")


def _as_rank(config: Config) -> None:
    from emocap_pretrain.loop import pretrain
    from emocap_pretrain.world import lost_contact

    runtime = EnvRuntime.from_environment(config.cluster.device)
    try:
        pretrain(config, runtime)
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        raise TrainingError(
            "another rank has ended or hangs, see its own message; the same command goes on from the newest checkpoint."
        ) from error
    if runtime.place.rank == 0:
        _print_result(config)
    if runtime.place.world > 1:
        _leave()


def _leave() -> NoReturn:
    """End this rank without Python's teardown.

    A thread of gloo may still let go of the last collective's tensors; it needs the interpreter for that, and where the
    interpreter is being taken down the process aborts (`terminate called without an active exception`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _on_ray(config: Config) -> None:
    from emocap_cluster.ranks import connected, on_every_rank

    for source in config.data.sources:
        read_manifest(source.url)
    with connected(RANK_ENVIRONMENT) as resources:
        ranks, on_gpu = _ranks(config, resources.gpus)
        batch_split(config, ranks)
        console.print(f"Starting {ranks} ranks with Ray; the run's folder is {config.url}")
        on_every_rank(
            partial(_pretrain, config),
            ranks=ranks,
            on_gpu=on_gpu,
            resources=resources,
            timeout_s=config.cluster.timeout_s,
        )
    _print_result(config)


def _pretrain(config: Config, runtime: Runtime) -> None:
    """What each process of Ray's calls."""
    from emocap_pretrain.loop import pretrain

    show_logs()
    pretrain(config, runtime)


def _print_result(config: Config) -> None:
    """The report's table, or where a stopped run stands; and how to look at it."""
    from emocap_shards.store import open_store

    from emocap_pretrain.run_folder import RunFolder

    report = RunFolder(open_store(config.url)).report(config.steps)
    if report is None:
        console.print(f"Run {config.name} was asked to stop and is saved; the same command goes on from there.")
        return
    console.print(report.table())
    console.print(f"Look at it:\n{_mlflow_command(config.stored()['tracking']['uri'])}")


def _mlflow_command(uri: str) -> str:
    """What to type, or to open, to see the tracked runs; MLflow itself listens on 127.0.0.1:5000 only."""
    if uri.startswith(("http://", "https://")):
        return uri
    command = f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}"
    # In a terminal the command is for the folder that the person is in; a log may be read from anywhere.
    return command.replace(f"{Path.cwd()}/", "") if sys.stdout.isatty() else command


def main() -> None:
    """Entry point of `python -m emocap_pretrain.run` and of launch/pretrain.py."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


if __name__ == "__main__":
    main()
