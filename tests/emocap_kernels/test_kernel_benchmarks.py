import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import batches  # noqa: E402 - beside the script that is tested, not in a package
import contenders  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import probe  # noqa: E402
import record  # noqa: E402
import tables  # noqa: E402
import timing  # noqa: E402
import truth  # noqa: E402
from machine import Occasion  # noqa: E402
from measure import Plan, measure  # noqa: E402
from outcome import Skipped, attempt  # noqa: E402
from variants import BOTH, FORWARD, PLAIN, VARIANTS, floor_flops  # noqa: E402

CPU = torch.device("cpu")
main = runpy.run_path(str(BENCHMARKS / "__main__.py"))["main"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tiny run leaves: chunked and dense measured, liger skipped."""
    path = tmp_path_factory.mktemp("benchmarks") / "contrastive.jsonl"
    chosen = [
        contender
        for contender in contenders.roster()
        if contender.name in ("chunked", "dense", "liger") and contender.variant == PLAIN
    ]
    plan = Plan(
        contenders=chosen,
        rows=(24, 48),
        widths=(16,),
        dtype=torch.float32,
        device=CPU,
        repeats=3,
        check_rows=4,
        matmul=64,
    )
    for line in measure(plan, Occasion("a CPU", "0123", "2026-01-01", "a test")):
        record.append(path, line)
    return path


@pytest.mark.parametrize(
    ("variant", "forward", "both"),
    [("plain", 2, 8), ("threshold", 6, 16), ("top_k", 6, 12), ("joint", 2, 8), ("sigmoid", 2, 6)],
)
def test_the_floor_counts_products_of_images_and_texts(variant: str, forward: int, both: int) -> None:
    (chosen,) = (each for each in VARIANTS if each.name == variant)
    assert floor_flops(chosen, FORWARD, 10, 3) == forward * 10 * 10 * 3
    assert floor_flops(chosen, BOTH, 10, 3) == both * 10 * 10 * 3


def test_a_spread_is_made_of_the_readings() -> None:
    assert timing.spread([4.0, 1.0, 2.0, 3.0, 10.0]) == timing.Spread(1.0, 3.0, 2.0, 4.0)
    assert timing.spread([2.0]) == timing.Spread(2.0, 2.0, 2.0, 2.0)


def test_ratios_compare_readings_of_the_same_round() -> None:
    # The machine is half as fast in the second round: the ratio does not notice.
    assert timing.ratios([3.0, 6.0], [1.0, 2.0]) == [3.0, 3.0]


def test_whoever_fails_leaves_the_rounds_and_the_others_go_on() -> None:
    class Clock:
        def seconds(self, call: timing.Call, _times: int) -> float:
            call()
            return 1.0

    tries = iter(range(100))

    def fails_later() -> None:
        if next(tries) == 3:
            raise MemoryError

    taken = timing.in_rounds({"steady": lambda: None, "fails": fails_later}, Clock(), repeats=4)
    assert taken == {"steady": [1.0] * 4, "fails": Skipped("out of memory")}


def test_a_run_records_every_contender_at_every_size_or_why_not(records: Path) -> None:
    lines = record.read(records)
    measured = {(line.contender, line.rows, line.pass_) for line in lines if line.skipped is None}
    assert measured == {
        (who, rows, each) for who in ("chunked", "dense") for rows in (24, 48) for each in (FORWARD, BOTH)
    }
    (skipped,) = (line for line in lines if line.skipped is not None)
    assert (skipped.contender, skipped.skipped, skipped.rows) == ("liger", "needs a CUDA device", None)


def test_a_line_says_what_was_measured(records: Path) -> None:
    (line,) = (line for line in record.read(records) if (line.contender, line.rows, line.pass_) == ("dense", 48, BOTH))
    assert line.seconds is not None
    assert 0 < line.seconds.min <= line.seconds.low_quartile <= line.seconds.median <= line.seconds.high_quartile
    assert line.repetitions == 3
    assert line.ratio_to == "chunked"
    assert line.floor_flops == 8 * 48 * 48 * 16
    assert line.eff == pytest.approx(line.floor_flops / line.seconds.median / line.matmul_flops_per_s)
    assert line.agreement.right
    assert line.agreement.gradient_error < 1e-5
    assert line.sampled.rows == 4
    assert max(line.sampled.image_gradient_error, line.sampled.text_gradient_error) < 1e-5
    assert line.versions["torch"] == torch.__version__


def test_a_line_survives_its_file_and_lines_about_other_things_are_left_alone(records: Path) -> None:
    text = records.read_text().splitlines()[-1]
    assert "pass" in json.loads(text)
    assert record.to_json(record.from_json(text)) == text
    assert record.from_json('{"what": "quickstart"}') is None


def test_of_equal_measurements_the_last_counts(records: Path) -> None:
    lines = record.read(records)
    again = replace(lines[-1], date="2026-02-02")
    assert record.latest([*lines, again]) == [*lines[:-1], again]


def test_plots_are_made_of_the_records_alone(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "--out", str(records), "--figures", str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.suffix for path in written} == {".svg", ".png"}
    assert all(path.stat().st_size > 10_000 for path in written)


def test_the_table_names_everybody(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--out", str(records)]) == 0
    text = capsys.readouterr().out
    assert "### a CPU, float32, width 16" in text
    assert "| dense |" in text
    assert "- liger: needs a CUDA device" in text


def test_progress_fits_a_terminal(records: Path) -> None:
    lines = record.read(records)
    long = [replace(lines[0], skipped="x" * 200), replace(lines[-1], rows=1 << 20, contender="cce_exact")]
    assert max(len(tables.progress(line)) for line in [*lines, *long]) < 80


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--contenders", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("error: --contenders nobody is unknown; it must be one of fused, chunked")


def test_a_contender_that_is_wrong_is_told() -> None:
    wrong = contenders.Contender("wrong", PLAIN, lambda: lambda batch: 1.5 * contenders.dense(batch))
    found = truth.agreement(wrong, 16, torch.float32, CPU)
    assert isinstance(found, truth.Agreement)
    assert found.loss_error == pytest.approx(0.5, rel=1e-3)
    assert not found.right


def test_sampled_rows_are_those_of_the_whole_gradient() -> None:
    batch = batches.draw(40, 16, torch.float64, CPU)
    found = truth.sampled(contenders.dense, batch, PLAIN, 8)
    assert max(found.loss_error, found.image_gradient_error, found.text_gradient_error) < 1e-12


def test_a_dense_size_beyond_half_of_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 10**9)
    assert memory.dense_refusal(8192, CPU) is None
    assert "out of memory: needs about 5.4 GB" in memory.dense_refusal(16384, CPU)


def test_a_peer_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    batch = batches.draw(8, 256, torch.float32, CPU)
    for peer in (peers.open_clip, peers.open_clip_sigmoid, peers.inf_cl, peers.cut_cross_entropy, peers.liger):
        skipped = attempt(lambda peer=peer: peer(batch))
        assert isinstance(skipped, Skipped)
        assert skipped.reason.startswith("not installed; pip install --no-deps")


def test_what_a_process_did_not_live_to_report_is_skipped_with_its_end() -> None:
    job = probe.Job(
        name="dense", variants=("plain",), rows=(8,), width=4, dtype="float32", device="nowhere", check_rows=0
    )
    findings = probe.probe(job)
    assert set(findings) == {("plain", None, None), ("plain", 8, FORWARD), ("plain", 8, BOTH)}
    assert all((each.skipped or "").startswith("its process failed: RuntimeError") for each in findings.values())


def test_tiles_are_tuned_on_a_gpu_only(tmp_path, capsys):
    assert main(["tune", "--device", "cpu", "--rows", "8", "--width", "16", "--out", str(tmp_path / "lines")]) == 1
    assert "tune needs a CUDA device" in capsys.readouterr().err
