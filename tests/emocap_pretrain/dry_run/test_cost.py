from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.dry_run.cost import NODES, cost_rows, run_s
from emocap_pretrain.dry_run.fabric import Fabric, Link
from emocap_pretrain.dry_run.outlook import Assumptions, Outlook
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
    assert [name for name, _ in rows] == ["cost", "", ""]
    assert [text for _, text in rows] == [
        "1 node, 8 GPUs: 60 min, cost 20.00",
        "4 nodes, 32 GPUs: 15 min, cost 20.00",
        "16 nodes, 128 GPUs: 3.8 min, cost 20.00",
    ]


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
    assert unknown == [("cost", "unknown here: give --step-seconds, of one rank alone")]
    rows = cost_rows(OUTLOOK, steps=1, global_batch=16, price=1, device="GPU")
    assert "more ranks than the 16 samples" in rows[1][1]


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.floats(0, 1e5), st.floats(1e-3, 1e4))
def test_every_row_fits_a_terminal(steps: int, batch: int, price: float, towers_s: float):
    outlook = replace(OUTLOOK, speed=Speed(towers_s, 1e14, 0.0))
    for _, text in cost_rows(outlook, steps=steps, global_batch=batch, price=price, device="CPU process"):
        assert len(text) <= 80


def test_twice_the_price_is_twice_the_cost():
    def last(price: float) -> float:
        rows = cost_rows(OUTLOOK, steps=10**6, global_batch=4096, price=price, device="GPU")
        return float(rows[0][1].rpartition(" ")[2].replace(",", ""))

    assert last(5.0) == pytest.approx(2 * last(2.5))
