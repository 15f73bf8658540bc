from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.fabric import FABRICS, Fabric, Link, device_flops, fabric_of
from emocap_pretrain.dry_run.step import Speed, breaks_at, efficiency, step_time
from emocap_pretrain.dry_run.workload import Workload, gradients, vectors
from emocap_pretrain.errors import ConfigError

WORK = Workload(
    rows=256,
    embedding=512,
    vector_bytes=2,
    texts=2,
    guides=0,
    products=8,
    patch_products=0,
    own_products=0,
    parameters=129_000_000,
    trained=129_000_000,
    zero_stage=1,
)
SPEED = Speed(towers_s=0.2, loss_flops_per_s=4e14, update_s=0.002)
FREE = Fabric("free", 8, Link(1e30, 0.0), Link(1e30, 0.0))
FOUR = replace(FREE, ranks_per_node=4)


def config_of(**sections: object) -> Config:
    tree = {"name": "a", "url": "/tmp/run", "steps": 1, "global_batch": 8, "data": {"url": "/tmp/data"}}
    return Config.model_validate(tree | sections)


def workload(**sections: object) -> Workload:
    return Workload.of(config_of(**sections), 256, parameters=1000, trained=1000, patches=196, half=True)


def test_plain_clip_is_eight_b_b_d():
    work = workload(objective={"summary": 0, "local": 0})
    assert work.loss_flops(16) == 8 * 256 * (16 * 256) * 512
    assert work.texts == 1


def test_every_guide_and_every_term_adds_its_products():
    objective = {"summary": 0.5, "local": 0}
    assert workload(objective=objective).products == 2 * 4
    for guide, products in {"counterpart": 8, "consensus": 8, "text": 6, "image": 6, "joint": 4}.items():
        mined = workload(objective=objective | {"mining": {"guide": guide, "threshold": 0.9}})
        assert mined.products == 2 * products
        assert mined.guides == (2 if guide in {"counterpart", "consensus", "image"} else 0)
    assert workload(objective=objective | {"mining": {"guide": "text", "top_k": 3}}).products == 2 * 5


def test_the_kind_of_each_part_decides_its_products():
    objective = {"local": 0, "kind": "sigmoid", "kind_by_part": {"summary": "mil_nce"}}
    assert workload(objective=objective).products == 3 + 4
    mined = {"mining": {"guide": "text", "threshold": 0.9}}
    assert workload(objective=objective | mined).products == (3 + 1) + (4 + 2)
    assert workload(objective=objective | mined | {"backend": "reference"}).products == 2 * (3 + 1)


def test_a_teacher_costs_its_products_and_its_vectors_travel():
    teacher = {"name": "vit_tiny_patch16_224", "pretrained": "hub"}
    work = workload(objective={"local": 0, "kind": "soft", "teacher": teacher})
    assert (work.products, work.guides) == (2 * 6, 2)
    mined = {"kind_by_part": {"summary": "infonce"}, "mining": {"guide": "text", "threshold": 0.9}}
    work = workload(objective={"local": 0, "kind": "soft", "teacher": teacher} | mined)
    assert (work.products, work.guides) == (6 + 4 + 2, 1)


def test_sentences_of_one_image_are_not_exchanged_and_do_not_grow_with_the_batch():
    work = workload(objective={"scope": "image", "global": 0, "summary": 0})
    assert work.texts == 0
    assert work.loss_flops(8) == work.loss_flops(1) > 0
    everybody = workload(objective={"global": 0, "summary": 0})
    assert everybody.loss_flops(8) == 8 * everybody.loss_flops(1)


@pytest.mark.parametrize("schedule", ["gather", "hierarchical", "ring"])
def test_vectors_are_those_of_the_table_in_the_method(schedule):
    # b of B rows, M machines of four ranks.
    work, ranks, nodes = replace(WORK, schedule=schedule, texts=1), 16, 4
    row_bytes = work.embedding * work.vector_bytes
    received = vectors(work, ranks, FOUR)
    others = (ranks - 1) * work.rows * row_bytes
    assert received.bytes == (3 if schedule == "ring" else 2) * others
    if schedule == "hierarchical":
        assert received.between_bytes == 2 * (nodes - 1) * work.rows * row_bytes


def test_auto_goes_between_nodes_once_and_is_a_gather_within_one():
    assert vectors(WORK, 16, FOUR) == vectors(replace(WORK, schedule="hierarchical"), 16, FOUR)
    assert vectors(WORK, 4, FOUR) == vectors(replace(WORK, schedule="gather"), 4, FOUR)
    assert vectors(WORK, 4, FOUR).between_bytes == 0


@pytest.mark.parametrize(("stage", "passes"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_gradients_of_a_zero_stage_are_so_many_journeys_of_all_parameters(stage, passes):
    size = 4 * WORK.parameters
    # One rank a node: nothing happens inside of it.
    alone = gradients(replace(WORK, zero_stage=stage), 16, replace(FREE, ranks_per_node=1))
    assert alone.bytes == alone.between_bytes == pytest.approx(passes * size * 15 / 16)
    inside = gradients(replace(WORK, zero_stage=stage), 8, FREE)
    assert inside.bytes == inside.inside_bytes == pytest.approx(passes * size * 7 / 8)


def test_gradients_of_frozen_parameters_are_not_exchanged_but_stage_3_gathers_their_values():
    locked = replace(WORK, trained=WORK.parameters // 4)
    for stage, share in ((0, 2 / 4), (1, 2 / 4), (2, 2 / 4), (3, 2 + 1 / 4)):
        received = gradients(replace(locked, zero_stage=stage), 8, FREE)
        assert received.bytes == pytest.approx(share * 4 * WORK.parameters * 7 / 8, rel=1e-6)


def test_a_single_rank_receives_nothing():
    for fabric in FABRICS.values():
        assert vectors(WORK, 1, fabric).bytes == gradients(WORK, 1, fabric).bytes == 0
        step = step_time(WORK, 1, SPEED, fabric)
        assert step.network_s == 0
        assert step.total_s == pytest.approx(0.2 + WORK.loss_flops(1) / 4e14 + 0.002)
        assert efficiency(WORK, 1, SPEED, fabric) == 1


@given(st.integers(1, 7), st.sampled_from(sorted(FABRICS)), st.sampled_from(["gather", "hierarchical", "ring"]))
def test_efficiency_falls_with_every_doubling_of_the_nodes(doubling, name, schedule):
    work, ranks = replace(WORK, schedule=schedule), 8 * 2**doubling
    fabric = FABRICS[name]
    assert efficiency(work, ranks, SPEED, fabric) <= efficiency(work, ranks // 2, SPEED, fabric) <= 1 + 1e-9


def test_without_communication_only_the_loss_reduces_the_efficiency():
    step = step_time(WORK, 1024, SPEED, FREE)
    assert step.network_s < 1e-12
    assert step.loss_s == pytest.approx(1024 * WORK.loss_flops(1) / 4e14)
    assert efficiency(replace(WORK, products=0), 1024, SPEED, FREE) >= 1


def test_a_slower_fabric_breaks_earlier():
    scales = (8, 64, 512)
    slow = fabric_of("8,10,0.05")
    assert breaks_at(WORK, SPEED, slow, scales) == 64
    assert breaks_at(WORK, SPEED, FREE, scales) is None
    step = step_time(WORK, 64, SPEED, slow)
    assert step.network_s > max(step.towers_s, step.loss_s, step.update_s)


def test_an_exchange_overlaps_only_with_its_share_of_the_loss():
    open_, hidden = (replace(FABRICS["eth100"], vectors_behind_loss=share) for share in (0.0, 1.0))
    shown, rest = (step_time(WORK, 64, SPEED, fabric) for fabric in (open_, hidden))
    assert shown.vectors_s - rest.vectors_s == pytest.approx(shown.loss_s)


def test_a_measured_step_is_found_again():
    speed = Speed.of_step(0.3, WORK, 4e14)
    assert step_time(WORK, 1, speed, FREE).total_s == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="shorter than its loss"):
        Speed.of_step(1e-9, WORK, 4e14)


def test_a_fabric_is_a_name_or_three_numbers():
    assert fabric_of("ib400") is FABRICS["ib400"]
    own = fabric_of("4,300,25")
    assert (own.ranks_per_node, own.inside.bytes_per_s, own.between.bytes_per_s) == (4, 300e9, 25e9)
    for wrong in ("fast", "8,1", "8,0,1", "0.5,1,1", "8,1,2,3"):
        with pytest.raises(ConfigError, match=f"fabric='{wrong}' is neither one of ib400, eth100, gloo nor"):
            fabric_of(wrong)


def test_a_gpu_is_recognized_by_a_part_of_its_name():
    fast = device_flops("NVIDIA H100 80GB HBM3", half=True)
    slow = device_flops("NVIDIA H100 80GB HBM3", half=False)
    assert fast is not None
    assert slow is not None
    assert fast > slow > 0
    assert device_flops("Radeon", half=True) is None
