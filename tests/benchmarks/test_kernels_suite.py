from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import record, tables
from benchmarks.harness.machine import Occasion
from benchmarks.harness.rounds import Skipped
from benchmarks.harness.suite import run
from benchmarks.kernels import device, peers, plots, probe, region_losses, subjects
from benchmarks.kernels.batches import draw_pairs, draw_regions
from benchmarks.kernels.device import attempt
from benchmarks.kernels.measure import LossPlan, measure
from benchmarks.kernels.subject import BOTH, FORWARD, Contender, Size, Subject
from benchmarks.kernels.subjects import GLOBAL, LOCAL_VARIANTS, PLAIN, REGION, VARIANTS, floor_flops, local_floor_flops
from benchmarks.kernels.suite import SUITE
from benchmarks.kernels.tables import label_of, size_of

CPU = torch.device("cpu")


def record_run(path: Path, subject: Subject, chosen: list[Contender], sizes: list[Size]) -> Path:
    """Appends the records of a tiny run."""
    plan = LossPlan(
        subject=subject,
        contenders=chosen,
        sizes=sizes,
        dtype=torch.float32,
        device=CPU,
        repeats=3,
        check_rows=4,
        matmul=64,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_READING_S", 0.0)  # A reading times one call. How exact it is, is not tested.
        record.append(path, measure(plan, Occasion("a CPU", 0.0, "0123", "2026-01-01", "a test")))
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the records of the global loss: `chunked` and `dense` are measured, and `liger` is skipped."""
    chosen = [
        contender
        for contender in GLOBAL.contenders
        if contender.name in ("chunked", "dense", "liger") and contender.variant == PLAIN
    ]
    path = tmp_path_factory.mktemp("benchmarks") / "contrastive.jsonl"
    return record_run(path, GLOBAL, chosen, [Size(24, 16), Size(48, 16)])


@pytest.fixture(scope="module")
def local_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns records of the local loss at two numbers of sentences; `fused` is skipped, the others are measured."""
    names = ("fused", "chunked", "dense", "blockwise")
    chosen = [each for each in REGION.contenders if each.name in names and each.variant.mining is None]
    path = tmp_path_factory.mktemp("benchmarks") / "region.jsonl"
    return record_run(path, REGION, chosen, [Size(12, 16, 9, 24), Size(12, 16, 9, 36)])


@pytest.mark.parametrize(
    ("variant", "forward", "both"),
    [("plain", 2, 8), ("threshold", 6, 16), ("top_k", 6, 12), ("joint", 2, 8), ("sigmoid", 2, 6)],
)
def test_the_floor_counts_products_of_images_and_texts(variant: str, forward: int, both: int) -> None:
    (chosen,) = (each for each in VARIANTS if each.name == variant)
    assert floor_flops(chosen, FORWARD, Size(10, 3)) == forward * 10 * 10 * 3
    assert floor_flops(chosen, BOTH, Size(10, 3)) == both * 10 * 10 * 3


@pytest.mark.parametrize(
    ("variant", "forward", "both"),
    [
        ("plain", 2 * 10 * 7, 8 * 10 * 7),
        ("threshold", 2 * 10 * 7 + 2 * 20, 8 * 10 * 7 + 4 * 20),
        ("sparc", 4 * 7, 12 * 7),
        ("flair", 2 * 10 * 7, 8 * 10 * 7),
    ],
)
def test_the_floor_counts_products_of_patches_and_sentences(variant: str, forward: int, both: int) -> None:
    (chosen,) = (each for each in LOCAL_VARIANTS if each.name == variant)
    size = Size(10, 3, patches=7, sentences=20)
    assert local_floor_flops(chosen, FORWARD, size) == forward * 20 * 3
    assert local_floor_flops(chosen, BOTH, size) == both * 20 * 3


def test_a_contender_that_fails_leaves_the_rounds_and_the_others_continue() -> None:
    def clock(call: device.Call, _times: int) -> float:
        call()
        return 1.0

    tries = iter(range(100))

    def fails_later() -> None:
        if next(tries) == 3:
            raise MemoryError

    taken = device.in_rounds({"steady": lambda: None, "fails": fails_later}, clock, repeats=4)
    assert taken == {"steady": [1.0] * 4, "fails": Skipped("out of memory")}


def test_a_run_records_every_contender_at_every_size_or_the_reason(records: Path) -> None:
    lines = record.read(records)
    measured = {(line.contender, line.setting["rows"], line.setting["pass"]) for line in lines if line.skipped is None}
    assert measured == {
        (who, rows, each) for who in ("chunked", "dense") for rows in (24, 48) for each in (FORWARD, BOTH)
    }
    (skipped,) = (line for line in lines if line.skipped is not None)
    assert (skipped.contender, skipped.skipped, skipped.setting["rows"]) == ("liger", "needs a CUDA device", None)


def test_a_record_has_the_setting_and_the_comparison_with_float64(records: Path) -> None:
    lines = {(line.contender, line.setting["rows"], line.setting["pass"]): line for line in record.read(records)}
    line = lines["dense", 48, BOTH]
    assert line.value is not None
    assert 0 < line.value.min <= line.value.low_quartile <= line.median <= line.value.high_quartile
    assert line.repetitions == 3
    assert set(line.ratios) == {"over chunked"}
    assert line.more["floor_flops"] == 8 * 48 * 48 * 16
    assert line.more["eff"] == pytest.approx(line.more["floor_flops"] / line.median / line.more["matmul_flops_per_s"])
    assert line.more["agreement"]["right"]
    assert line.more["agreement"]["gradient_error"] < 1e-5
    sampled = line.more["sampled"]
    assert sampled["rows"] == 4
    assert max(sampled["image_gradient_error"], sampled["text_gradient_error"]) < 1e-5
    assert line.versions["torch"] == torch.__version__


def test_plots_need_only_the_records(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["plot", "--out", str(records.parent), "--figures", str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.suffix for path in written} == {".svg", ".png"}
    assert all(path.stat().st_size > 10_000 for path in written)


def test_the_table_has_every_contender(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["table", "--out", str(records.parent)]) == 0
    text = capsys.readouterr().out
    assert "### a CPU, float32, width 16" in text
    assert "| dense |" in text
    assert "- liger: needs a CUDA device" in text


def test_progress_fits_a_terminal_and_marks_wrong_results(records: Path, local_records: Path) -> None:
    lines = [*record.read(records), *record.read(local_records)]
    measured = next(line for line in lines if line.value is not None)
    wrong = replace(measured, more={**measured.more, "agreement": {"right": False}})
    assert "WRONG" in tables.progress(wrong, SUITE.note(wrong))
    long = [replace(lines[0], value=None, skipped="x" * 200), wrong]
    assert max(len(tables.progress(line, SUITE.note(line))) for line in [*lines, *long]) < 80


def test_a_local_run_measures_every_contender_in_its_passes(local_records: Path) -> None:
    lines = record.read(local_records)
    at = Size(12, 16, 9, 36)
    measured = {
        (label_of(line), line.setting["pass"]) for line in lines if size_of(line) == at and line.skipped is None
    }
    names = ("chunked", "chunked sparc", "dense", "dense sparc", "dense flair")
    assert measured == {(who, each) for who in names for each in (FORWARD, BOTH)} | {("blockwise maxsim", FORWARD)}
    assert {label_of(line) for line in lines if line.skipped == "needs a CUDA device"} == {"fused", "fused sparc"}


def test_a_record_of_the_local_loss_has_its_setting_and_its_comparison(local_records: Path) -> None:
    lines = {
        (label_of(line), line.setting["pass"]): line
        for line in record.read(local_records)
        if line.setting["sentences"] == 36
    }
    plain, other = lines["dense", BOTH], lines["dense flair", BOTH]
    assert (plain.what, size_of(plain)) == ("local contrastive loss", Size(12, 16, 9, 36))
    assert plain.more["floor_flops"] == other.more["floor_flops"] == 8 * 12 * 9 * 36 * 16
    assert set(plain.ratios) == set(other.ratios) == {"over chunked"}
    errors = [plain.more["agreement"][name] for name in ("loss_error", "gradient_error")]
    errors += [plain.more["sampled"][f"{name}_error"] for name in ("loss", "image_gradient", "text_gradient")]
    assert max(errors) < 1e-5
    # A record of another function names it, and is compared with float64 only if we have that function too.
    assert plain.more["function"] is None
    assert other.more["function"].startswith("in the style of FLAIR")
    assert other.more["agreement"] is other.more["sampled"] is lines["blockwise maxsim", FORWARD].more["agreement"]
    assert other.more["agreement"] is None
    assert lines["dense sparc", BOTH].more["agreement"]["right"]
    assert lines["chunked sparc", BOTH].ratios["over chunked"].median != 1


def test_plots_of_the_local_loss_are_over_the_size_that_varies(local_records: Path, tmp_path: Path) -> None:
    assert run(SUITE, ["plot", "--out", str(local_records.parent), "--figures", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.glob("*.svg")}
    assert names == {f"region{kind}-sentences-a-cpu-float32-16.svg" for kind in ("", "-variants")}


def test_a_plot_varies_one_size_with_the_others_at_their_largest() -> None:
    rows, sentences, patches = plots.TOPICS[REGION.what].sweeps
    sizes = {Size(8, 16, number, 8 * many) for number in (4, 9) for many in (1, 2, 4)} | {Size(16, 16, 9, 32)}
    assert plots.longest(sentences, sizes) == [Size(8, 16, 9, 8 * many) for many in (1, 2, 4)]
    assert plots.longest(patches, sizes) == [Size(8, 16, number, 32) for number in (4, 9)]
    assert plots.longest(rows, sizes) == [Size(8, 16, 9, 16), Size(16, 16, 9, 32)]


def test_tables_of_the_local_loss_have_all_sizes(local_records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["table", "--out", str(local_records.parent)]) == 0
    text = capsys.readouterr().out
    assert "| images x patches x sentences | 12 x 9 x 24 | 12 x 9 x 36 |" in text
    assert "| dense flair |" in text


def test_local_losses_in_plain_pytorch_equal_ours_also_for_images_without_sentences() -> None:
    batch = draw_regions(Size(9, 16, 5, 11), torch.float64, CPU)
    assert len(batch.owner.unique()) < 9
    for name, loss in (("plain", region_losses.dense), ("sparc", region_losses.within_images)):
        (variant,) = (each for each in LOCAL_VARIANTS if each.name == name)
        assert loss(batch).item() == pytest.approx(
            subjects.our_local_loss("reference", variant)(batch).item(), rel=1e-12
        )


def test_a_single_patch_is_pooled_unchanged() -> None:
    batch = draw_regions(Size(6, 16, 1, 8), torch.float64, CPU)
    score = torch.einsum("ipd,nd->in", batch.patches, batch.sentences)
    assert torch.allclose(region_losses.best_patches(batch), score)
    assert region_losses.pooled_vectors(batch).item() == pytest.approx(region_losses.dense(batch).item())


def test_a_step_records_the_share_of_the_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image-tower", "test_vit", "--text-layers", "1", "--text-width", "64", "--width", "16"]
    assert run(SUITE, ["step", *words, "--rows", "4", "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)]) == 0
    (line,) = record.read(tmp_path / "step.jsonl")
    at = [line.setting[name] for name in ("rows", "sentences", "image", "dtype")]
    assert at == [4, 16, "test_vit", "float32"]
    assert all(line.spread_of(part).min > 0 for part in ("value", "towers_s", "objective_s", "local_s"))
    assert 0 < line.ratios["objective in the step"].median < 1
    assert "objective in the step" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--loss", "region", "--patches", "5", "--sentences-per-image", "2"]], ids=str)
def test_ranks_records_the_received_bytes_and_the_time_of_a_share(words, tmp_path, capsys):
    sizes = ["--rows", "16", "--width", "16", "--rounds", "1", "--device", "cpu"]
    assert run(SUITE, ["ranks", *words, *sizes, "--out", str(tmp_path)]) == 0
    (line,) = record.read(tmp_path / "ranks.jsonl")
    assert line.more["vector_bytes"] == line.more["expected_bytes"] > 0
    share = line.ratios["over one process's share"].median
    assert share == pytest.approx(2 * line.median / line.spread_of("alone_s").median)
    assert "over one process's share" in capsys.readouterr().out


def test_rows_that_do_not_divide_and_unknown_schedules_are_errors_of_one_line(tmp_path, capsys):
    assert run(SUITE, ["ranks", "--rows", "15", "--width", "16", "--device", "cpu", "--out", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == "error: 15 rows do not divide among 2 processes.\n"
    with pytest.raises(SystemExit):
        run(SUITE, ["ranks", "--schedule", "star"])
    assert "star must be one of auto, gather, hierarchical, ring" in capsys.readouterr().err


def test_options_without_effect_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["measure", "--patches", "49"]) == 1
    assert run(SUITE, ["measure", "--loss", "region", "--large"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: --patches has no effect with --loss global; leave it out.",
        "error: --large has no effect with --loss region; leave it out.",
    ]
    with pytest.raises(SystemExit):
        run(SUITE, ["step", "--large"])
    assert "unrecognized arguments: --large" in capsys.readouterr().err


def test_an_unknown_name_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["measure", "--contenders", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("error: --contenders nobody is unknown; it must be one of fused, chunked")


def test_a_wrong_contender_is_marked() -> None:
    wrong = Contender("wrong", PLAIN, lambda batch: 1.5 * subjects.dense(batch))
    found = probe.agreement(GLOBAL, wrong, GLOBAL.draw(Size(64, 16), torch.float32, CPU))
    assert found["loss_error"] == pytest.approx(0.5, rel=1e-3)
    assert not found["right"]


def test_sampled_rows_equal_those_of_the_whole_gradient() -> None:
    for subject, size, loss in (
        (GLOBAL, Size(40, 16), subjects.dense),
        (REGION, Size(40, 16, 5, 60), region_losses.dense),
    ):
        contender = Contender("dense", PLAIN, loss)
        found = probe.sampled(subject, contender, subject.draw(size, torch.float64, CPU), 8)
        assert found.pop("rows") == 8
        assert max(found.values()) < 1e-12


def test_a_dense_size_above_half_of_the_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 4 * 10**9)
    assert device.dense_refusal(subjects.dense_bytes(Size(8192, 512)), CPU) is None
    assert "out of memory: needs about 5.4 GB" in device.dense_refusal(subjects.dense_bytes(Size(16384, 512)), CPU)


def test_a_peer_that_is_not_installed_is_skipped_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    batch = draw_pairs(Size(8, 256), torch.float32, CPU)
    for peer in (peers.open_clip, peers.open_clip_sigmoid, peers.inf_cl, peers.cut_cross_entropy, peers.liger):
        skipped = attempt(lambda peer=peer: peer(batch))
        assert isinstance(skipped, Skipped)
        assert skipped.reason.startswith("not installed; pip install --no-deps")


def test_sizes_after_the_end_of_a_process_are_skipped_with_the_reason() -> None:
    size = Size(8, 4)
    task = probe.ProbeTask(
        subject="global",
        name="dense",
        variant="plain",
        sizes=(size,),
        dtype="float32",
        device="nowhere",
        check_rows=0,
    )
    findings = probe.probe(task)
    assert set(findings) == {(None, None), (size, FORWARD), (size, BOTH)}
    assert all((each.skipped or "").startswith("its process failed: RuntimeError") for each in findings.values())


def test_tiles_are_tuned_on_a_gpu_only(tmp_path, capsys):
    assert (
        run(SUITE, ["tune", "--device", "cpu", "--rows", "8", "--width", "16", "--out", str(tmp_path / "lines")]) == 1
    )
    assert "tune needs a CUDA device" in capsys.readouterr().err
