"""Computes the forecasts of weak scaling and of goodput that the command `simulate` records.

Weak scaling keeps the number of rows of a rank the same for every number of ranks. Goodput is the share of the time of
all nodes that is spent on work which a committed checkpoint contains. The models of a step and of failures are those of
`emocap_pretrain.dry_run`.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

from benchmarks.cluster.simulation import Elastic, simulate
from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.fabric import FABRICS, REACHED_FLOPS, device_flops
from emocap_pretrain.dry_run.failures import FailureModel, daly, goodput, young
from emocap_pretrain.dry_run.memory import estimate
from emocap_pretrain.dry_run.outlook import COPIED_BYTES_PER_S, DAY_S, SCALES, STORED_BYTES_PER_S
from emocap_pretrain.dry_run.step import Speed, efficiency, step_time
from emocap_pretrain.dry_run.workload import FLOAT, Workload

SCALING, GOODPUT = "weak scaling", "goodput"
OBJECTIVES = {"global, summary and local": {}, "plain CLIP": {"summary": 0, "local": 0}}
ROWS, NODES = 256, 128
MTBF_DAYS = (3.0, 10.0, 30.0, 100.0)
TIMES_DALY = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0)
REPAIR_S, LIVES = 3600.0, 2000
FORMULA, SIMULATED, CONTINUES, WAITS = "formula", "replaced at once", "continues with fewer nodes", "waits for the node"
_ELASTIC = {SIMULATED: None, CONTINUES: Elastic(REPAIR_S), WAITS: Elastic(REPAIR_S, NODES)}
# The time in which an H100 moves 130 M float32 parameters, moments and gradients through its memory, doubled.
UPDATE_S = 0.003


def forecasts(about: Occasion) -> Iterator[Measurement]:
    """Yields all forecasts. Their records name no machine, because a forecast is the same on every machine."""
    nowhere = replace(about, device="a model, no device")
    yield from _scaling(nowhere)
    yield from _failing(nowhere)


def _scaling(about: Occasion) -> Iterator[Measurement]:
    """Yields the efficiency of weak scaling for each objective, interconnect and number of ranks.

    The efficiency is the speed of one of many ranks, relative to the speed of a rank that trains alone. Each rank has
    ROWS rows of the batch, and the default towers in bfloat16. The operations of the towers are counted; the rate at
    which an H100 computes them is assumed.
    """
    flops = device_flops("H100", half=True)
    assert flops is not None, "the presets are H100s"
    for objective, weights in OBJECTIVES.items():
        config = _config(weights)
        memory = estimate(config, 1, on_gpu=True)
        size = {"parameters": memory.parameters, "trained": memory.trained}
        work = Workload.of(config, ROWS, **size, patches=memory.patches, half=True)
        speed = Speed(ROWS * memory.row_flops / flops, flops, UPDATE_S)
        for fabric, ranks in product(("ib400", "eth100"), SCALES):
            step = step_time(work, ranks, speed, FABRICS[fabric])
            yield measured(
                about,
                [efficiency(work, ranks, speed, FABRICS[fabric])],
                what=SCALING,
                contender=fabric,
                setting={"objective": objective, "ranks": ranks, "rows": work.rows},
                unit="share of the speed of a rank alone",
                more=asdict(step) | {"step_s": step.total_s, "kept_of_peak": REACHED_FLOPS},
                versions={},
            )


def _failing(about: Occasion) -> Iterator[Measurement]:
    """Yields the goodput of a job on NODES nodes, for several rates of failures and intervals between saves."""
    size = estimate(_config({}), 1, on_gpu=True).parameters * FLOAT
    for days in MTBF_DAYS:
        trouble = FailureModel(
            node_mtbf_s=days * DAY_S,
            nodes=NODES,
            stall_s=size / COPIED_BYTES_PER_S + 1.0,
            commit_s=size / STORED_BYTES_PER_S + 10.0,
            restart_s=180.0,
        )
        for times in TIMES_DALY:
            yield from _shares(trouble, days, times * daly(trouble), about)


def _shares(trouble: FailureModel, days: float, interval_s: float, about: Occasion) -> Iterator[Measurement]:
    """Yields the goodput by the formula of `dry_run.failures`, and by simulations of each policy in `_ELASTIC`.

    A policy says how the job continues after the failure of a node. Each policy is simulated with three seeds.
    `trouble` describes the failures, and the times of saves and restarts. `days` is the mean time between failures of
    one node, in days. `interval_s` is the time that the job works between two saves, in seconds.
    """
    setting = {"nodes": NODES, "node_mtbf_days": days, "interval_s": round(interval_s, 1)}
    best = {"young_s": young(trouble), "daly_s": daly(trouble), **asdict(trouble)}

    horizon_s = LIVES * trouble.mtbf_s
    shares = {FORMULA: [goodput(trouble, interval_s)]}
    for who, elastic in _ELASTIC.items():
        runs = [simulate(trouble, interval_s, horizon_s=horizon_s, seed=seed, elastic=elastic) for seed in range(3)]
        shares[who] = [run.goodput for run in runs]
    for who, readings in shares.items():
        yield measured(
            about,
            readings,
            what=GOODPUT,
            contender=who,
            setting=setting,
            unit="share of the time of all nodes",
            more=best,
            versions={},
        )


def _config(weights: dict[str, int]) -> Config:
    """Returns the config of the default towers, with these weights of the terms of the loss."""
    return Config.model_validate(
        {
            "name": "forecast",
            "url": "/nowhere",
            "steps": 1,
            "global_batch": 8,
            "data": {"url": "/nowhere"},
            "objective": weights,
            "engine": {"precision": "bf16"},
        }
    )
