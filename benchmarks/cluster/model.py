"""Computes what `simulate` records: the model of `emocap_pretrain.dry_run`, and jobs under failures."""

from collections.abc import Iterator
from dataclasses import asdict, replace

from benchmarks.cluster.simulation import Elastic, simulate
from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.fabric import FABRICS, REACHED_FLOPS, Fabric, device_flops
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
FORMULA, SIMULATED, GOES_ON, WAITS = "formula", "replaced at once", "goes on with fewer", "waits for the node"
_ELASTIC = {SIMULATED: None, GOES_ON: Elastic(REPAIR_S), WAITS: Elastic(REPAIR_S, NODES)}
UPDATE_S = 0.003  # 130 M float32 parameters, moments and gradients once through the memory of an H100, twice counted.


def scaling(about: Occasion) -> Iterator[Measurement]:
    """The default towers in bfloat16 with ROWS rows a rank, of which FLOP are counted and the rate is assumed."""
    flops = device_flops("H100", half=True)
    assert flops is not None, "the presets are H100s"
    for objective, weights in OBJECTIVES.items():
        config = _config(weights)
        memory = estimate(config, 1)
        work = Workload.of(config, ROWS, parameters=memory.parameters, patches=memory.patches, half=True)
        speed = Speed(ROWS * memory.row_flops / flops, flops, UPDATE_S)
        for name in ("ib400", "eth100"):
            for ranks in SCALES:
                yield _scaled(work, ranks, speed, FABRICS[name], {"fabric": name, "objective": objective}, about)


def _scaled(
    work: Workload, ranks: int, speed: Speed, fabric: Fabric, setting: dict[str, str], about: Occasion
) -> Measurement:
    step = step_time(work, ranks, speed, fabric)
    return measured(
        about,
        [efficiency(work, ranks, speed, fabric)],
        what=SCALING,
        contender=setting["fabric"],
        setting={"objective": setting["objective"], "ranks": ranks, "rows": work.rows},
        unit="share of the speed of a rank alone",
        more=asdict(step) | {"step_s": step.total_s, "kept_of_peak": REACHED_FLOPS},
        versions={},
    )


def failing(about: Occasion) -> Iterator[Measurement]:
    """Yields the goodput of 1,024 ranks on NODES nodes: by the formula, and simulated with three seeds."""
    size = estimate(_config({}), 1).parameters * FLOAT
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
    setting = {"nodes": NODES, "node_mtbf_days": days, "interval_s": round(interval_s, 1)}
    best = {"young_s": young(trouble), "daly_s": daly(trouble), **asdict(trouble)}

    def of(who: str, readings: list[float]) -> Measurement:
        return measured(
            about,
            readings,
            what=GOODPUT,
            contender=who,
            setting=setting,
            unit="share of the time of all nodes",
            more=best,
            versions={},
        )

    yield of(FORMULA, [goodput(trouble, interval_s)])
    horizon_s = LIVES * trouble.mtbf_s
    for who, elastic in _ELASTIC.items():
        runs = [simulate(trouble, interval_s, horizon_s=horizon_s, seed=seed, elastic=elastic) for seed in range(3)]
        yield of(who, [run.goodput for run in runs])


def nowhere(about: Occasion) -> Occasion:
    """A forecast is of no machine."""
    return replace(about, device="a model, no device")


def _config(weights: dict[str, int]) -> Config:
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
