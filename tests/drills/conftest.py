"""Provides one testbed for all drills, and one Ray cluster on it for each module that needs it."""

from collections.abc import Callable, Iterator

import pytest
from hosts import missing
from launchers import srun, succeed
from ray_cluster import RayCluster, ray_cluster
from testbed import Testbed, Unbroken, laid_out

NOTES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(NOTES, []):
        terminalreporter.write_line(line)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Returns a function that records a name and a number of seconds, which are printed at the end."""

    def take(what: str, seconds: float) -> None:
        lines = request.config.stash.setdefault(NOTES, [])
        lines.append(f"{seconds:6.1f} s  {what}")

    return take


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    if reason := missing():
        pytest.skip(reason)
    with laid_out(tmp_path_factory.mktemp("drills")) as ready:
        yield ready


@pytest.fixture(scope="session")
def unbroken(testbed: Testbed) -> Unbroken:
    """Returns the undisturbed run with which the drills of all launchers are compared."""
    run = testbed.new_run("unbroken")
    succeed(srun(testbed, run))
    return Unbroken.of(run)


@pytest.fixture(scope="module")
def running(testbed: Testbed, unbroken: Unbroken) -> Iterator[RayCluster]:
    """Starts Ray before the first drill of a module. `unbroken` runs first, because it needs hosts without Ray."""
    with ray_cluster(testbed) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: RayCluster) -> Iterator[RayCluster]:
    """Repairs the cluster before each drill, whatever the previous one has broken."""
    running.up()
    yield running
    if any(job.process.poll() is None for job in running.jobs):
        running.down()
