import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cluster.simulation import Elastic, Outcome, simulate
from emocap_pretrain.dry_run.failures import FailureModel, daly, goodput, young

DAY_S = 86400.0
JOB = FailureModel(node_mtbf_s=30 * DAY_S, nodes=128, stall_s=2.0, commit_s=40.0, restart_s=180.0)
CALM = replace(JOB, node_mtbf_s=math.inf)


@st.composite
def troubles(draw: st.DrawFn) -> FailureModel:
    """Draws jobs whose saves and restarts are short compared with the time between failures."""
    return FailureModel(
        node_mtbf_s=draw(st.floats(DAY_S, 100 * DAY_S)),
        nodes=draw(st.integers(1, 256)),
        stall_s=draw(st.floats(0.05, 5)),
        commit_s=draw(st.floats(0, 30)),
        restart_s=draw(st.floats(0, 300)),
    )


def shares(outcome: Outcome) -> float:
    return outcome.goodput + outcome.stalled + outcome.lost + outcome.restarting + outcome.absent


def test_the_intervals_are_those_of_the_papers():
    # sqrt(2 x 5 min x 24 h), and Daly's correction of it.
    trouble = FailureModel(node_mtbf_s=DAY_S, nodes=1, stall_s=300.0, commit_s=0.0, restart_s=0.0)
    assert young(trouble) == pytest.approx(7200.0)
    assert daly(trouble) == pytest.approx(7200 * (1 + math.sqrt(300 / (2 * DAY_S)) / 3 + 300 / (18 * DAY_S)) - 300)


def test_a_save_as_long_as_twice_the_mtbf_is_made_once_in_an_mtbf():
    trouble = replace(JOB, stall_s=3 * JOB.mtbf_s)
    assert daly(trouble) == JOB.mtbf_s


@given(troubles(), st.floats(0.2, 5))
def test_no_interval_is_noticeably_better_than_dalys(trouble, times):
    best = goodput(trouble, daly(trouble))
    assert goodput(trouble, times * daly(trouble)) <= best + 1e-5
    assert best >= goodput(trouble, young(trouble)) - 1e-5


@given(troubles(), st.floats(1.2, 5))
def test_goodput_falls_on_both_sides_of_the_best_interval(trouble, times):
    best = daly(trouble)
    assert goodput(trouble, best) > goodput(trouble, times * best) > goodput(trouble, times * 1.2 * best)
    assert goodput(trouble, best) > goodput(trouble, best / times) > goodput(trouble, best / times / 1.2)


@given(troubles(), st.floats(1, 1e5))
def test_goodput_is_a_share_and_falls_with_every_cost(trouble, interval_s):
    now = goodput(trouble, interval_s)
    assert 0 <= now < 1
    assert goodput(replace(trouble, nodes=2 * trouble.nodes), interval_s) <= now
    for cost in ("stall_s", "commit_s", "restart_s"):
        assert goodput(replace(trouble, **{cost: getattr(trouble, cost) + 10}), interval_s) <= now


def test_without_failures_only_saving_costs_and_never_saving_is_best():
    assert goodput(CALM, 98.0) == pytest.approx(0.98)
    assert goodput(replace(CALM, stall_s=0.0), 98.0) == 1.0
    assert daly(CALM) == math.inf
    outcome = simulate(CALM, 98.0, horizon_s=1e6, seed=0)
    assert outcome.failures == 0
    assert outcome.goodput == pytest.approx(0.98, abs=1e-3)


def test_the_goodput_of_an_interval_that_no_attempt_survives_is_zero():
    assert goodput(JOB, 1e9) == 0.0
    assert simulate(JOB, 1e9, horizon_s=1e6, seed=0).goodput == 0.0


@pytest.mark.parametrize("interval_s", [30.0, 283.0, 2000.0, 10_000.0])
@pytest.mark.parametrize("nodes", [8, 128, 1024])
def test_the_simulation_agrees_with_the_formula_where_failed_nodes_are_replaced_at_once(nodes, interval_s):
    trouble = replace(JOB, nodes=nodes)
    outcome = simulate(trouble, interval_s, horizon_s=10_000 * trouble.mtbf_s, seed=nodes)
    assert outcome.goodput == pytest.approx(goodput(trouble, interval_s), rel=0.02, abs=0.005)
    assert outcome.failures == pytest.approx(10_000, rel=0.04)


@settings(max_examples=40)
@given(troubles(), st.floats(5, 5000), st.floats(0, 10_000), st.integers(0, 1000), st.data())
def test_every_node_second_is_accounted_for_once(trouble, interval_s, repair_s, seed, data):
    elastic = Elastic(repair_s, data.draw(st.integers(1, trouble.nodes)))
    outcome = simulate(trouble, interval_s, horizon_s=50 * trouble.mtbf_s, seed=seed, elastic=elastic)
    assert shares(outcome) == pytest.approx(1.0)
    assert min(outcome.goodput, outcome.stalled, outcome.lost, outcome.restarting, outcome.absent) >= 0


def test_the_same_seed_gives_the_same_simulation():
    first = simulate(JOB, 300.0, horizon_s=1e7, seed=3, elastic=Elastic(3600.0))
    assert first == simulate(JOB, 300.0, horizon_s=1e7, seed=3, elastic=Elastic(3600.0))
    assert first != simulate(JOB, 300.0, horizon_s=1e7, seed=4, elastic=Elastic(3600.0))


def test_continuing_with_fewer_nodes_beats_waiting_for_absent_ones():
    def outcome(min_nodes: int) -> Outcome:
        return simulate(JOB, 283.0, horizon_s=5000 * JOB.mtbf_s, seed=1, elastic=Elastic(3600.0, min_nodes))

    goes_on, waits = outcome(1), outcome(JOB.nodes)
    assert goes_on.goodput > waits.goodput + 0.1
    # A node is absent for an hour of every thirty days.
    assert goes_on.absent == pytest.approx(3600 / (30 * DAY_S), rel=0.1)


def test_a_job_grows_when_a_checkpoint_counts_and_never_without_a_failure():
    at_once = simulate(JOB, 283.0, horizon_s=5000 * JOB.mtbf_s, seed=1)
    elastic = simulate(JOB, 283.0, horizon_s=5000 * JOB.mtbf_s, seed=1, elastic=Elastic(600.0))
    # Each failure is followed by one more restart, that of growing, and by what the commit's delay throws away.
    assert elastic.restarting == pytest.approx(2 * at_once.restarting, rel=0.1)
    assert elastic.lost > at_once.lost
