"""Measures starts, steps, saves and restarts of small runs from outside.

The runs are started by commands, and MLflow contains the time of each logged step. The commands `start`, `overhead`,
`stall` and `recover` of the suite call the functions of these names. `start` and `overhead` compare Ray with torchrun:
both are measured alternately (`harness.rounds`).
"""

import http.client
import json
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import psutil
from emocap_shards.store import open_store

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import AttemptDocument

from .job import BIN, RUN, WAYS, JobError, RunningJob, RunSize, Site, free_port, started

START, OVERHEAD, STALL, RECOVER = "start to first step", "step time", "stall of a save", "kill to next step"
PACKAGES = ("torch", "ray", "deepspeed", "mlflow")
HELD = "time/saving_s_slowest"
STOPPED, PROLONGED = "time for which training stops", "additional time of a step with a save"
WARM_UP, BLOCK = 10, 10
# The command line of a rank contains one of these words; Ray names the processes of its workers.
RANK_WORDS = ("RayTrainWorker", RUN[1])


def start(place: Site, size: RunSize, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures the seconds from the command to the first step, for `ray job submit` and for torchrun.

    The Ray cluster to which jobs are submitted is started before the measurement.
    """

    def started_s(who: str, address: str) -> float:
        config = place.config(f"start-{who.split(maxsplit=1)[0]}", size)
        command = _submitted(config, address) if who == "ray job" else WAYS[who](config, size)
        with started(command, place, config.parent) as job:
            job.wait()
        return place.logged(config)[0][1] - job.began

    with _head(place) as address:
        calls = {who: partial(started_s, who, address) for who in ("ray job", "torchrun")}
        found = complete(in_rounds(calls, rounds=rounds))
    for who, readings in found.items():
        yield measured_line(about, START, who, size, readings)


def overhead(place: Site, size: RunSize, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures the seconds of a step in steady state, alternately under Ray and under torchrun.

    Steps are logged at the default interval. The records also contain the mean number of cores that all processes of a
    job except its ranks occupy. Other load on the machine affects this number less than the time of a step.
    """

    def step_and_cores(who: str) -> tuple[float, float]:
        config = place.config(f"overhead-{who}", size, every_steps=BLOCK)
        with started(WAYS[who](config, size), place, config.parent) as job:
            cores = _cores_beside(job, place, config, size)
            job.wait()
        return steady_s(place.logged(config)), cores

    taken = complete(in_rounds({who: partial(step_and_cores, who) for who in WAYS}, rounds=rounds))
    steps = {who: [step for step, _ in each] for who, each in taken.items()}
    for who, each in taken.items():
        over = {"over torchrun": ratios(steps[who], steps["torchrun"])} if who == "ray" else None
        more = {"cores_beside_ranks": spread([cores for _, cores in each])}
        yield measured_line(about, OVERHEAD, who, size, steps[who], ratios=over, more=more)


def _cores_beside(job: RunningJob, place: Site, config: Path, size: RunSize) -> float:
    """Returns the CPU seconds that all processes of the job except its ranks use in one second of training."""
    job.wait_for("steady state", lambda: len(place.logged(config)) >= 2, pause_s=2)
    began, before = time.time(), _cpu_s(job)
    job.wait_for("last steps", lambda: len(place.logged(config)) >= size.steps // BLOCK - 1, pause_s=2)
    seconds, after = time.time() - began, _cpu_s(job)
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys()) / seconds


def _cpu_s(job: RunningJob) -> dict[int, float]:
    """Returns the CPU seconds of each process of the job that is not a rank, by process id."""
    family = [psutil.Process(job.process.pid), *job.family()]
    ranks = ranks_of(family)
    found: dict[int, float] = {}
    for each in family:
        if each not in ranks:
            with suppress(psutil.NoSuchProcess):
                found[each.pid] = sum(each.cpu_times()[:2])
    return found


def stall(place: Site, size: RunSize, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures for how many seconds a save pauses training, and how many seconds longer a step with a save takes.

    The second time includes the first. It also includes a delay after the pause: while the saving thread writes the
    checkpoint, it competes with the training for the cores.
    """
    held: list[float] = []
    longer: list[float] = []
    usual: list[float] = []
    for _ in range(rounds):
        config = place.config("stall", size, checkpoint={"every_steps": BLOCK})
        with started(WAYS["torchrun"](config, size), place, config.parent) as job:
            job.wait()
        saving, others = split_by_saves(place.logged(config), every_steps=BLOCK)
        usual.append(statistics.median(others))
        longer.append(statistics.median(saving) - usual[-1])
        held.append(statistics.median(each.value for each in place.history(config, HELD) if each.value))
    for who, readings in ((STOPPED, held), (PROLONGED, longer)):
        share = {"share of a step": ratios(readings, usual)}
        yield measured_line(about, STALL, who, size, readings, ratios=share, more={"step_s": spread(usual)})


def recover(place: Site, size: RunSize, rounds: int, about: Occasion, command: Sequence[str]) -> Iterator[Measurement]:
    """Measures the seconds from the kill of a rank to the first new step of a later attempt.

    The record also contains the seconds of the parts that no restart can avoid, such as the imports. The module `floor`
    measures these parts. `command` starts the job; `{config}` and `{port}` in it are replaced by the path of the config
    and a free port. If `command` is empty, the job runs on Ray.
    """
    readings: list[float] = []
    configs = [place.config("recover", size, checkpoint={"every_steps": BLOCK}) for _ in range(rounds)]
    for config in configs:
        words = [word.format(config=config, port=free_port()) for word in command] or WAYS["ray"](config, size)
        with started(words, place, config.parent) as job:
            readings.append(_killed_s(job, place, config))
            job.wait()
    parts = _floor(configs[-1], place, size)
    launcher = " ".join(takewhile(lambda word: word == "--" or not word.startswith("-"), command)) or "ray"
    yield measured_line(about, RECOVER, launcher, size, readings, more=parts)


def _floor(config: Path, place: Site, size: RunSize) -> dict[str, float]:
    """Starts the ranks of the finished run of `config` again, with `benchmarks.cluster.floor` in place of training.

    Returns the seconds that rank 0 needs for each step of this start, such as the imports.
    """
    answer = config.parent / "floor.json"
    ranks = ("--nproc_per_node", str(size.ranks), "--master_port", free_port())
    command = ["torchrun", *ranks, "-m", "benchmarks.cluster.floor", str(config), str(answer)]
    with started(command, place, config.parent) as job:
        job.wait()
    return json.loads(answer.read_text())


def _killed_s(job: RunningJob, place: Site, config: Path) -> float:
    """Kills one rank once a checkpoint exists, and returns the seconds until the first new step of a later attempt.

    A step is new if no attempt has logged it before. MLflow contains each step only once, even if it is trained again
    after the kill.
    """
    job.wait_for("checkpoint", lambda: any((config.parent / "run" / "checkpoints").glob("*/manifest.json")))
    rank = ranks_of(job.family())[-1]
    store = open_store(config.parent / "run")
    attempt = attempts.newest(store)
    rank.kill()
    killed = time.time()

    def new_steps() -> list[float]:
        """Returns when later attempts logged steps. Until rank 0 ends, the killed attempt may log its current step."""
        launched = attempts.launched(store, attempt + 1)
        begun = launched.at if isinstance(launched, AttemptDocument) else None
        return [at for _, at in place.logged(config) if begun and at > begun]

    job.wait_for("step after the kill", lambda: bool(new_steps()))
    return min(new_steps()) - killed


def ranks_of(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Returns the processes that are ranks: they have the command line of a rank, and none of their children has it.

    Raises:
        JobError: If no process is a rank.
    """
    found = [each for each in family if any(word in _command(each) for word in RANK_WORDS)]
    parents = {each.ppid() for each in found}
    leaves = [each for each in found if each.pid not in parents]
    if not leaves:
        raise JobError("no process of the job looks like a rank.")
    return leaves


def _command(process: psutil.Process) -> str:
    """Returns the command line of a process; an empty text if the process has ended or is a zombie."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def steady_s(logged: Sequence[tuple[int, float]]) -> float:
    """Returns the median seconds of a step, from the times between logged steps. Steps before WARM_UP are left out.

    Raises:
        JobError: If fewer than two steps were logged from WARM_UP on.
    """
    rows = [(step, at) for step, at in logged if step >= WARM_UP]
    if len(rows) < 2:
        raise JobError(f"{len(logged)} rows are too few: give at least {WARM_UP + BLOCK} steps.")
    return statistics.median((late - early) / (last - first) for (first, early), (last, late) in pairwise(rows))


def split_by_saves(logged: Sequence[tuple[int, float]], *, every_steps: int) -> tuple[list[float], list[float]]:
    """Returns the seconds from each logged step to the next one, in two lists: for steps with a save, and for others.

    `every_steps` is the interval between saves. A step is logged before its save, so the time to the next step includes
    the save. Steps before WARM_UP are left out.

    Raises:
        JobError: If one of the two lists is empty.
    """
    saving: list[float] = []
    others: list[float] = []
    for (step, early), (_, late) in zip(logged[WARM_UP - 1 :], logged[WARM_UP:], strict=False):
        (others if step % every_steps else saving).append(late - early)
    if not saving or not others:
        raise JobError(f"{len(logged)} steps hold no save after the first {WARM_UP}: give more steps.")
    return saving, others


@contextmanager
def _head(place: Site) -> Generator[str]:
    """Starts a Ray cluster of one node, and yields the address to which jobs are submitted."""
    port = free_port()
    command = ["ray", "start", "--head", "--block", "--port", free_port(), "--dashboard-host", "127.0.0.1"]
    command += ["--dashboard-port", port, "--dashboard-agent-listen-port", free_port()]
    command += ["--ray-client-server-port", free_port(), "--num-cpus", "2", "--object-store-memory", "150000000"]
    command += ["--temp-dir", place.env["RAY_TMPDIR"], "--disable-usage-stats"]
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        asked = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        try:
            asked.request("GET", "/api/jobs/")
            return asked.getresponse().status in {200, 401}  # With 401 the dashboard asks for the token.
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()

    with started(command, place, place.folder) as job:
        job.wait_for("dashboard", answers)
        yield address


def _submitted(config: Path, address: str) -> list[str]:
    """Returns the command that submits a run to a Ray cluster."""
    # A job runs in the folder where the head was started, so its paths must be absolute.
    run = (str(BIN / "python"), *RUN, str(config), f"url={config.parent / 'run'}")
    return ["ray", "job", "submit", "--address", address, "--", *run]


def measured_line(
    about: Occasion, what: str, who: str, size: RunSize, seconds: Sequence[float], **rest: Any
) -> Measurement:
    """Returns the record of a measurement that was made with small runs.

    `about` holds fields that all records share, such as the date. `what` is the measured quantity, `who` the launcher
    or the measured case, and `seconds` are the readings. `rest` holds the fields `ratios` and `more` of the record, if
    there are any.
    """
    return measured(
        about,
        seconds,
        what=what,
        contender=who,
        setting={"ranks": size.ranks, "steps": size.steps, "width": size.width, "depth": size.depth},
        unit="s",
        versions=versions(PACKAGES),
        **rest,
    )
