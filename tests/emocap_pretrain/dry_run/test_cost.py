from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.dry_run.cost import NODES, cost_rows, run_s
from emocap_pretrain.dry_run.fabric import Fabric, Link
from emocap_pretrain.dry_run.measured import MeasuredStep
from emocap_pretrain.dry_run.outlook import Assumptions, Outlook
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.dry_run.step import Speed
from emocap_pretrain.dry_run.workload import Workload

FREE = Fabric("free", 8, Link(1e30, 0.0), Link(1e30, 0.0))
WORK = Workload(
    rows=512,
    embedding=512,
    vector_bytes=2,
    texts=2,
    guides=0,
    products=0,
    patch_products=0,
    own_products=0,
    parameters=1,
    trained=1,
    zero_stage=1,
)
# A rank needs 3.6 s for its 512 rows of a batch of 4096 on 8 ranks. Nodes hardly ever fail.
OUTLOOK = Outlook(WORK, 0, 8, 1000, FREE, Assumptions(node_mtbf_days=1e12), Speed(3.6, 1e30, 0.0))


def test_a_run_of_1000_steps_of_3_6_s_on_8_gpus_takes_an_hour_and_costs_8_prices():
    rows = cost_rows(OUTLOOK, steps=1000, global_batch=4096, price=2.5, device="GPU")
    assert [name for name, _ in rows] == ["cost", "", "", "", ""]
    assert [text for _, text in rows] == [
        "nodes  GPUs  hours   cost",
        "    1     8      1  20.00",
        "    4    32   0.25  20.00",
        "   16   128  0.063  20.00",
        "at 2.5 for an hour of a GPU; with failures, without evaluations",
    ]


def test_the_plan_prints_the_hours_and_the_cost_of_each_number_of_nodes(tiny_config):
    config = tiny_config.model_copy(update={"steps": 36_000, "global_batch": 64})
    # A rank has 8 rows on one node and 2 rows on four, for which the towers take a quarter of the time.
    fabric = Fabric("free", 8, Link(1e30, 0.0), Link(1e30, 0.0))
    assumed = Assumptions(fabric, MeasuredStep(2.0), node_mtbf_days=1e12, price=1.5)
    printed = RunPlan.of(config, 8, on_gpu=True, assumed=assumed).text().splitlines()
    start = next(number for number, line in enumerate(printed) if line.startswith("cost"))
    head, one, four, sixteen, last = printed[start:]
    assert head.split() == ["cost", "nodes", "GPUs", "hours", "cost"]
    assert one.split() == ["1", "8", "20", "240.00"]
    assert four.split()[:3] == ["4", "32", "5"]
    # The loss compares with the texts of all ranks, so four times the devices cost hardly more.
    assert float(four.split()[3]) == pytest.approx(240, rel=1e-3)
    assert sixteen.split(maxsplit=2) == ["16", "128", "more ranks than the 64 samples of a batch"]
    assert last.strip() == "at 1.5 for an hour of a GPU; with failures, without evaluations"
    assert {line.rfind("0") for line in (one, four)} == {len(head) - 1}


def test_a_slow_network_makes_more_nodes_dearer():
    slow = replace(OUTLOOK, fabric=replace(FREE, between=Link(1e30, 0.5)))
    assert OUTLOOK.speed
    hours = [run_s(slow, OUTLOOK.speed, nodes * 8, steps=1000, global_batch=4096) for nodes in NODES]
    assert hours[0] < hours[1] * 4 < hours[2] * 16


def test_failures_are_a_part_of_the_cost():
    assert OUTLOOK.speed
    steady = run_s(OUTLOOK, OUTLOOK.speed, 128, steps=1000, global_batch=4096)
    failing = run_s(
        replace(OUTLOOK, assumed=Assumptions(node_mtbf_days=1)), OUTLOOK.speed, 128, steps=1000, global_batch=4096
    )
    assert failing > 1.01 * steady


def test_what_cannot_be_computed_is_said():
    unknown = cost_rows(replace(OUTLOOK, speed=None), steps=1, global_batch=8, price=1, device="GPU")
    assert unknown == [("cost", "unknown, because the time of a step is unknown (above)")]
    rows = cost_rows(OUTLOOK, steps=1, global_batch=16, price=1, device="GPU")
    assert rows[2][1].endswith("32  more ranks than the 16 samples of a batch")
    hopeless = replace(OUTLOOK, assumed=Assumptions(node_mtbf_days=1e-9))
    rows = cost_rows(hopeless, steps=1, global_batch=4096, price=1, device="GPU")
    assert all("failures would leave no time" in text for _, text in rows[1:4])


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.floats(0, 1e5), st.floats(1e-3, 1e4))
def test_every_row_fits_a_terminal(steps: int, batch: int, price: float, towers_s: float):
    outlook = replace(OUTLOOK, speed=Speed(towers_s, 1e14, 0.0))
    for _, text in cost_rows(outlook, steps=steps, global_batch=batch, price=price, device="rank")[:-1]:
        assert len(text) <= 64


def test_twice_the_price_is_twice_the_cost():
    def last(price: float) -> float:
        rows = cost_rows(OUTLOOK, steps=10**6, global_batch=4096, price=price, device="GPU")
        return float(rows[1][1].rpartition(" ")[2].replace(",", ""))

    assert last(5.0) == pytest.approx(2 * last(2.5))
