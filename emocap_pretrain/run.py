"""Trains a run: `emocap pretrain cfg.yaml [dotted.key=value ...] [--dry-run] [--debug]`.

`python -m emocap_pretrain.run` is the same command, for launchers that start a Python module. If a user or `ray job
submit` starts the command, the command uses Ray to start one rank on every device. If a launcher such as deepspeed,
torchrun or srun starts the command once for each rank, the process trains as that rank. Both cases use the same
training function.

The command does one of three things: `_dry_run` prints the plan, `_as_rank` trains in this process, and `_on_ray`
checks the run in this process and calls `emocap_cluster.supervise`, which starts the ranks; each rank calls
`_pretrain`. The settings and their environment are checked before training starts. So a mistake leads to one line and
exit code 2.

Modules that import torch, Ray or DeepSpeed are imported inside functions, for two reasons: `--help` stays quick, and
environment variables that these libraries read at their import can be set before the import.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from emocap_shards.inspecting.wording import wrapped
from emocap_shards.mask import MASK, remember
from emocap_shards.store import open_store
from rich.text import Text

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.interop.settings import load_config
from emocap_pretrain.logs import conceal, guard_tracebacks, show_logs, shown
from emocap_pretrain.ranks.runtime import EnvRuntime, Runtime, launched
from emocap_pretrain.record import RunRecord
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report, on_ranks
from emocap_pretrain.terminal import (
    INTERRUPTED,
    STOPPED,
    WRONG_INPUT,
    Command,
    console,
    duration,
    errors_as_lines,
    screen,
)
from emocap_pretrain.tracking import pages

if TYPE_CHECKING:
    from emocap_cluster.placement import ResourceRequest
    from emocap_cluster.supervise import JobHistory

    from emocap_pretrain.dry_run.outlook import Assumptions
    from emocap_pretrain.dry_run.preflight import Devices

# TORCH_CPP_LOG_LEVEL: without it torch prints twenty lines about a socket, and our line about the lost rank is hidden.
RANK_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# Prefixes of the environment variables that ranks on other nodes get too. OPEN ones are visible on Ray's dashboard;
# SECRET ones are sent only with the function that the ranks call.
OPEN = ("NCCL_", "GLOO_", "TORCH_")
SECRET = ("AWS_", "FSSPEC_", "MLFLOW_", "WANDB_", "HF_", "EMOCAP_")
REFUSAL = "this will not run"  # First words of a problem that a dry run finds.
# Why an attempt without a failure ended, by the value of `emocap_cluster.restarts.End`.
WHY = {"drained": "a node was taken away", "growing": "there was room for more ranks"}


def command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")] = Path("cfg.yaml"),
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value; overrides the file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and whether the run can start; exit code 2 if not.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="For --dry-run: print the resolved config too.")] = False,
    step_seconds: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|RUN", help="For --dry-run: measured seconds of a step of one rank, or a run's url."
        ),
    ] = None,
    fabric: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK", help="For --dry-run: ib400, eth100, gloo, or RANKS_PER_NODE,INSIDE,BETWEEN in GB/s."
        ),
    ] = None,
    node_mtbf_days: Annotated[
        float | None,
        typer.Option(
            min=1e-3, metavar="DAYS", help="For --dry-run: mean days between failures of one node; default 30."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="For --dry-run: price of a device for an hour; prints hours and cost.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train a run from the start, or from its newest checkpoint."""
    show_logs()
    with errors_as_lines(debug=debug, refusal=REFUSAL if dry_run else "error"):
        loaded = load_config(config, overrides or [])
        if dry_run:
            from emocap_pretrain.dry_run.fabric import fabric_of
            from emocap_pretrain.dry_run.measured import measured_step
            from emocap_pretrain.dry_run.outlook import Assumptions

            step = measured_step(step_seconds) if step_seconds else None
            network = fabric_of(fabric) if fabric else None
            _dry_run(loaded, Assumptions(network, step, node_mtbf_days, price), full=full)
        elif launched():
            _as_rank(loaded)
        else:
            _on_ray(loaded)


def _resource_request(config: Config, gpus: int) -> "ResourceRequest":
    """Returns the number of ranks and the kind of devices that the job requests.

    `gpus` is the number of GPUs of all hosts together. If `cluster.device` is "auto", ranks use GPUs if there are any.

    Raises:
        ConfigError: If `cluster.device` is "cuda", `cluster.ranks` is "auto", and there is no GPU. It is also raised if
            `cluster.ranks` exceeds the number of samples in a global batch.
    """
    from emocap_cluster.placement import ResourceRequest

    settings = config.cluster
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and gpus > 0)
    if settings.ranks == "auto" and on_gpu and not gpus:
        raise ConfigError("cluster.device=cuda, but there is no GPU: set it to auto or cpu, or set cluster.ranks.")
    ranks = None if settings.ranks == "auto" else settings.ranks
    if ranks:  # The call refuses more ranks than samples in a batch. Its result is not needed here.
        batch_split(config.global_batch, config.micro_batch, ranks=ranks)
    least = settings.min_ranks or ranks or 1
    return ResourceRequest(ranks, least, config.global_batch, on_gpu, spread=settings.placement == "spread")


def _dry_run(config: Config, assumed: "Assumptions", *, full: bool) -> None:
    """Prints the plan of the run, if it can be made, and every problem that prevents a start. Nothing is started.

    Args:
        config: The run's config.
        assumed: The assumptions of the user for the forecast.
        full: Whether the plan includes the resolved config.

    Raises:
        SystemExit: With exit code 2, if there is a problem.
    """
    from emocap_pretrain.dry_run.plan import RunPlan
    from emocap_pretrain.dry_run.preflight import Findings, preflight

    # `collect` turns an error into a problem and returns None, so that all problems are printed and not only the first.
    found, plan = Findings(), None
    devices = found.collect(lambda: _devices_here(config))
    if devices:
        plan = found.collect(lambda: RunPlan.of(config, devices.ranks, on_gpu=devices.on_gpu, assumed=assumed))
    checked = preflight(config, devices if plan else None, known=plan.memory if plan else None)
    if plan:
        sys.stdout.write(shown(plan.text(full=full)) + "\n")
    for note in checked.notes:
        sys.stdout.write("\n".join(wrapped(shown(note), f"{'note':<16}")) + "\n")
    for line in checked.table_lines():
        sys.stdout.write(f"{shown(line)}\n")
    for problem in dict.fromkeys([*found.problems, *checked.problems]):
        sys.stderr.write(f"{REFUSAL}: {shown(problem)}\n")
    if found.problems or checked.problems:
        sys.exit(WRONG_INPUT)


def _devices_here(config: Config) -> "Devices":
    """Returns the devices that the ranks would have if this were the only host."""
    import torch
    from emocap_cluster.placement import Node, place

    from emocap_pretrain.dry_run.preflight import Devices

    gpus = torch.cuda.device_count()
    request = _resource_request(config, gpus)
    node = Node("here", "", os.cpu_count() or 1, gpus)
    ranks = request.ranks or place([node], request).ranks
    return Devices(ranks, min(ranks, gpus) if request.on_gpu else ranks, request.on_gpu)


def _as_rank(config: Config) -> None:
    # First the environment, then the checks, then training, and last an exit code that the launcher understands.
    for name, value in RANK_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # torch and other libraries read these when they are imported.
    from emocap_pretrain.dry_run.preflight import Devices
    from emocap_pretrain.ranks.join import lost_contact
    from emocap_pretrain.training.loop import pretrain

    runtime = EnvRuntime.from_environment(config.cluster.device)
    place = runtime.rank_info
    devices = Devices(place.world_size, place.local_world_size, on_gpu=runtime.device.startswith("cuda"))
    # All ranks find the same problems, so all end alike before they join. `pretrain` prepares the tasks on rank 0.
    _check(config, devices, prepare_tasks=False, print_notes=place.rank == 0)
    try:
        pretrain(config, runtime)
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        raise TrainingError(
            "another rank has ended or hangs, see its own message; the same command resumes from the newest checkpoint."
        ) from error
    done = place.rank != 0 or _print_result(config)
    # torchrun would take another code than 0 for a failure and restart what the user has stopped.
    code = 0 if done or "TORCHELASTIC_RUN_ID" in os.environ else STOPPED
    if place.world_size > 1:
        leave(code)
    sys.exit(code)


def _check(config: Config, devices: "Devices | None", *, prepare_tasks: bool, print_notes: bool = True) -> None:
    """Checks that the run can start, as far as that can be known without starting anything.

    If the run is done, only the settings of its evaluation are checked.

    Args:
        config: The run's config.
        devices: The devices of the ranks. If they are not known yet, it is None, and memory is not checked.
        prepare_tasks: Whether each evaluation task checks its settings against its data (`preflight`).
        print_notes: Whether the notes for the user are printed.

    Raises:
        ConfigError: If a problem prevents a start. The message has one line for each problem.
    """
    from emocap_pretrain.dry_run.preflight import Findings, evaluation, preflight
    from emocap_pretrain.training.conclusion import is_done

    if is_done(config, open_store(config.url)):
        found = Findings()
        found.collect(lambda: evaluation(config, found, prepare_tasks=prepare_tasks))
    else:
        found = preflight(config, devices, prepare_tasks=prepare_tasks, note_steps=False)
    found.refuse()
    if print_notes:
        for line in (*(f"note: {note}" for note in found.notes), *found.table_lines()):
            console.print(line)


def leave(code: int) -> NoReturn:
    """Ends the process of this rank with an exit code, without Python's shutdown.

    A thread of gloo may still release the tensors of the last collective, for which it needs the interpreter. If Python
    shut down at the same time, the process would abort (`terminate called without an active exception`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _on_ray(config: Config) -> None:
    from emocap_cluster.address import HERE, address_of_ray

    from emocap_pretrain.training.conclusion import conclude_again, is_done

    store = open_store(config.url)
    if is_done(config, store) and conclude_again(config, store):
        _print_result(config)
        return
    # The run is not finished, or must be evaluated again. Now the start is checked, before Ray is started or joined.
    # The devices of a cluster of several hosts are known only after it is joined.
    devices = _devices_here(config) if address_of_ray() == HERE else None
    _check(config, devices, prepare_tasks=True)
    _supervise(config)


def _supervise(config: Config) -> None:
    """Runs the job's ranks on Ray until the job ends, and then prints the attempts and the result of the job."""
    from emocap_cluster.cluster import connected
    from emocap_cluster.restarts import RestartBudget
    from emocap_cluster.supervise import Job, supervise

    settings = config.cluster
    # The record is made before the first attempt, because it compares with the attempts that exist now.
    record = RunRecord(open_store(config.url), config.steps)
    with connected(RANK_ENVIRONMENT | chosen(OPEN)) as cluster, screen() as shown:
        job = Job(
            function=partial(_pretrain, config),
            request=_resource_request(config, sum(node.gpus for node in cluster.nodes())),
            restarts=RestartBudget(settings.max_restarts, settings.max_preemptions),
            patience_s=settings.patience_s,
            timeout_s=settings.group_timeout_s,
            env=chosen(SECRET),
        )
        shown.say(f"Starting with Ray; the run's folder is {config.url}")
        history = supervise(job, cluster, record, shown)
    _print_history(history)
    if not _print_result(config):
        sys.exit(INTERRUPTED if history.interrupted else STOPPED)


def chosen(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Returns the environment variables of this process whose names begin with one of the prefixes."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _pretrain(config: Config, runtime: Runtime) -> None:
    """Trains as one rank. Ray calls this function in a process on the rank's host.

    The config arrives as a pickle. Ray passes an error back to the driver, which decides about a restart.
    """
    with on_ray_rank(config):
        from emocap_pretrain.training.loop import pretrain

        pretrain(config, runtime)


@contextmanager
def on_ray_rank(config: Config) -> Generator[None]:
    """Makes logs, tracebacks and the errors that are raised within the block free of secrets, in a process of Ray."""
    remember(*config.secrets)  # The config was resolved in another process, so its secrets are not known here yet.
    show_logs()
    guard_tracebacks()
    try:
        yield
    except BaseException as error:
        conceal(error)  # Ray writes the error into its own logs.
        raise


def _print_history(history: "JobHistory") -> None:
    """Prints the duration of the job. For each attempt except the last, it prints when and why the attempt ended."""
    last = history.attempts[-1] if history.attempts else None
    if last is None:
        return
    again = len(history.attempts) - 1
    times = "without a restart" if not again else f"with {again} restart{'s' if again > 1 else ''}:"
    console.print(f"{duration(last.ended_s)} {on_ranks(last.ranks)}, {times}")
    for attempt in history.attempts[:-1]:
        ended = attempt.ended
        why = str(ended.cause) if ended.cause else WHY[ended.how.value]
        console.print(f"  after {duration(attempt.ended_s)}, from step {ended.progress}: {why}")


def _print_result(config: Config) -> bool:
    """Prints the result of a run.

    For a finished run this is the report with the addresses of the run's pages in MLflow. For a stopped run it is the
    step of the newest checkpoint.

    Returns:
        Whether the run is done.
    """
    report = RunFolder(open_store(config.url)).report(config.steps)
    if report is None:
        at = RunRecord(open_store(config.url), config.steps).progress()
        if at:
            console.print(f"Run {config.name} is stopped and saved at step {at}; the same command resumes from there.")
        else:
            console.print(f"Run {config.name} is stopped before its first checkpoint; the same command begins it anew.")
        return False
    console.print(report.table())
    console.print(f"Checkpoints are in {config.url.rstrip('/')}/checkpoints")
    console.print("Look at it:")
    print_pages(config, report)
    return True


def print_pages(config: Config, report: Report) -> None:
    """Prints the addresses of the run's pages in MLflow.

    If the run is tracked in a local database and not on a server, the command that serves the pages is printed first.
    """
    # The stored address has no secrets: a text `${oc.env:...}` in it is not resolved.
    server = config.stored()["tracking"]["uri"].replace(f"{MASK}@", "")
    if not config.tracking.uri.startswith(("http://", "https://")):
        command = f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {server}"
        # In a terminal, paths are relative to the user's folder; a log may be read from anywhere.
        console.print(command.replace(f"{Path.cwd()}/", "") if sys.stdout.isatty() else command)
        server = "http://127.0.0.1:5000"  # MLflow's own default.
    found = {"runs": server}
    if report.experiment_id:
        found = pages.addresses(server, report.experiment_id, report.run_id)
    for name, address in found.items():
        # A `Text`, because the console would mask the query of a str, which may be a secret. This query is ours.
        console.print(Text(f"{name}: {address}"))


def main() -> None:
    """Runs `emocap pretrain` as a program of its own, for `python -m emocap_pretrain.run` and launch/pretrain.py."""
    guard_tracebacks()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(command)
    app()


if __name__ == "__main__":
    main()
