import re
from pathlib import Path

import pytest
import torch
import yaml
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.fabric import fabric_of
from emocap_pretrain.dry_run.measured import MeasuredStep, measured_step
from emocap_pretrain.dry_run.outlook import Assumptions
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Status


def rows(config: Config, ranks: int, *, on_gpu: bool = False, assumed: Assumptions | None = None) -> dict[str, str]:
    """Returns the rows of the plan by their names, each as one line."""
    found, name = dict[str, str](), ""
    for line in RunPlan.of(config, ranks, on_gpu=on_gpu, assumed=assumed).text().splitlines():
        name = line[:16].strip() or name
        found[name] = f"{found.get(name, '')} {line[16:]}".strip()
    return found


def test_the_plan_names_devices_and_the_split_of_the_batch(tiny_config):
    assert rows(tiny_config, 4)["devices"] == "4 ranks, one CPU process each"
    assert rows(tiny_config, 4, on_gpu=True)["devices"] == "4 ranks, one GPU each"
    assert rows(tiny_config, 4)["batch"] == "global 8 over 4 ranks, 2 rows each in one pass"


def test_the_plan_of_one_rank_that_trains_one_step_has_no_plural(tiny_config):
    found = rows(changed(tiny_config, steps=1, global_batch=1), 1)
    assert found["devices"] == "1 rank, one CPU process each"
    assert found["batch"] == "global 1 over 1 rank, 1 row each in one pass"
    assert found["length"].startswith("1 step, ")


def test_the_plan_names_the_data_and_how_often_it_is_seen(tiny_config):
    found = rows(tiny_config, 2)
    assert found["data"].startswith("24 samples in 4 shards")
    assert found["each rank"].startswith("about 12 samples in an epoch")
    assert found["length"] == "4 steps, 1.3 epochs"
    assert found["shuffle"] == "12 samples together"
    assert "cache" not in found, "data on a disk are not copied"


def test_the_plan_names_the_cache_of_data_in_a_store(tiny_config, faces):
    for file in Path(faces).iterdir():
        open_store("memory://plan").put(file.name, file.read_bytes())
    config = changed(tiny_config, data__url="memory://plan")
    said = f"at most 32 GB on each node, in {config.data.cache} two windows have "
    assert re.match(re.escape(said) + r"[\d.]+ kB; each node keeps its share of them$", rows(config, 1)["cache"])
    assert rows(changed(config, data__cache_gb=0), 1)["cache"].startswith("none, so each epoch")


def test_the_plan_names_the_shares_of_a_mixture(tiny_config, faces):
    mix = [{"url": faces, "weight": 3}, {"url": faces, "weight": 1}]
    found = rows(changed(tiny_config, data__url=None, data__mix=mix), 2)
    assert found["mixture"] == "75.0% + 25.0% of every batch"
    assert found["length"] == "4 steps, 0.7 epochs"


def test_the_plan_says_which_backend_computes_the_loss_and_why(tiny_config):
    said = "global, summary, local: chunked, fused kernels cannot run: the inputs are on cpu"
    assert rows(tiny_config, 2)["losses"].startswith(said)
    if not torch.cuda.is_available():
        assert rows(tiny_config, 2, on_gpu=True)["losses"] == "auto, chosen when the run starts on its GPUs"
    asked = tiny_config.objective.model_copy(update={"backend": "fused"})
    with pytest.raises(ConfigError, match=r"objective\.backend: backend='fused' cannot run: the inputs are on cpu"):
        rows(tiny_config.model_copy(update={"objective": asked}), 2)


def test_the_plan_names_the_memory_of_a_rank(tiny_config):
    found = rows(tiny_config, 1)
    assert found["parameters"].endswith(" M")
    assert "GiB on each rank's device" in found["memory"]


def trained(config: Config) -> list[str]:
    """Returns the rows of the plan about the parts that are trained."""
    lines = RunPlan.of(config, 1, on_gpu=False).text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("trained"))
    return [line[16:] for line in lines[first : first + 4]]


def test_the_plan_names_the_learning_rate_and_the_weight_decay_of_each_part(tiny_config):
    image, text, projections, scales = trained(tiny_config)
    assert image.endswith(" parameters, lr 0.001, decay 0.2")
    assert (text[:10], projections) == ("text tower", "projections: 2,048 parameters, lr 0.001, decay 0.2")
    assert scales == "scales: 2 parameters, lr 0.001"
    rates = {"lr_scales": {"image": 0.1, "logit_scale": 0.01}, "layer_decay": 0.5, "lr": 1e-3, "warmup_steps": 1}
    config = changed(tiny_config, optimizer=rates, model__text__freeze="all", model__freeze=["to_patch"])
    image, text, projections, scales = trained(config)
    assert "lr 5e-05 and 0.0001, decay" in image
    assert text.startswith("text tower: frozen, ")
    assert projections == "projections: 1,536 parameters, lr 0.001, decay 0.2, 512 frozen"
    assert scales == "scales: 2 parameters, lr 1e-05 and 0.001"


def test_the_full_text_ends_with_the_config_as_it_is_stored(tiny_config):
    config = tiny_config.with_interpolations({("tracking", "uri"): "${oc.env:URI}"})
    plan = RunPlan.of(config, 1, on_gpu=False)
    begin, _, resolved = plan.text(full=True).partition("\n\n# the resolved config\n")
    assert begin == plan.text()
    assert yaml.safe_load(resolved) == config.stored()
    assert "${oc.env:URI}" in resolved
    assert tiny_config.tracking.uri not in resolved


def test_data_that_cannot_be_read_from_here_are_not_an_error(tiny_config, tmp_path):
    data = tiny_config.data.model_copy(update={"url": str(tmp_path / "nowhere")})
    found = rows(tiny_config.model_copy(update={"data": data}), 1)
    assert found["data"] == f"no dataset can be read at {tmp_path}/nowhere from here"
    assert "length" not in found


def test_the_forecast_says_what_it_needs_if_the_device_is_unknown(tiny_config):
    found = rows(tiny_config, 2)
    assert found["forecast"] == "a model, not a measurement: processes on one machine, gloo"
    assert found["step"].startswith("unknown here: give --step-seconds, which is the metric time/step_s in MLflow of")
    assert found["network"].startswith("vectors ")
    assert rows(tiny_config, 1)["network"] == "none, because there is one rank"
    assert not {"failures", "save", "goodput"} & found.keys()


def test_failures_of_nodes_are_forecast_for_several_nodes_or_on_request(tiny_config):
    several = rows(changed(tiny_config, global_batch=16), 16, on_gpu=True)
    assert several["failures"] == "one in 15 days of this job: 2 nodes, each one in 30 days"
    assert "steps" not in several["save"]
    assert "goodput" not in several
    assert rows(tiny_config, 2, assumed=Assumptions(node_mtbf_days=4))["failures"].endswith(
        "1 node, each one in 4 days"
    )


def test_a_measured_step_gives_the_whole_forecast(tiny_config):
    assumed = Assumptions(step=MeasuredStep(0.5), fabric=fabric_of("2,10,1"), node_mtbf_days=4)
    found = rows(tiny_config, 8, assumed=assumed)
    assert found["step"].startswith("50")
    assert "16 samples/s; towers " in found["step"]
    assert found["failures"] == "one in 24 h of this job: 4 nodes, each one in 4 days"
    assert found["weak scaling"].endswith("ranks")
    assert " steps, if a save stalls " in found["save"]
    assert found["goodput"].startswith("99.")
    assert "saving every 2 steps" in found["goodput"]


@pytest.mark.parametrize(
    ("assumed", "lines"),
    [
        (Assumptions(), 5),
        (Assumptions(step=MeasuredStep(0.5)), 7),
        (Assumptions(step=MeasuredStep(0.5), fabric=fabric_of("eth100")), 7),
    ],
)
def test_the_plan_fits_a_terminal_of_80_columns(tiny_config, assumed, lines):
    plan = RunPlan.of(tiny_config, 8, on_gpu=True, assumed=assumed).text()
    _, _, forecast = plan.partition("\nforecast")
    assert len(forecast.splitlines()) == lines
    assert all(len(line) <= 80 for line in plan.splitlines())


def written_run(folder: str, *, ranks: int, samples_per_s: float | None) -> str:
    attempt = Attempt.begin(open_store(folder), ranks=ranks)
    attempt.write_status(Status(at=1.0, step=3, ranks=ranks, samples_per_s=samples_per_s))
    return folder


def test_the_time_of_a_step_is_read_from_the_folder_of_a_run(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = measured_step(written_run("alone", ranks=1, samples_per_s=40.0))
    found = rows(tiny_config, 2, assumed=Assumptions(step=alone))
    assert found["measured"] == "alone: 40 samples/s on one rank, so 0.1 s for 4 rows"
    assert found["step"].startswith("103 ms, ")
    shared = measured_step(written_run("shared", ranks=2, samples_per_s=40.0))
    assert shared.of_rows(4) == 0.2
    assert "an upper bound" in shared.words(4)
    assert measured_step("0.25").of_rows(4) == 0.25


@pytest.mark.parametrize(("text", "words"), [("0", "at least"), ("nan", "at least"), ("absent", "no run was ever")])
def test_what_has_no_speed_is_refused(text, words, tmp_path):
    with pytest.raises(ConfigError, match=f"--step-seconds={text}.*{words}"):
        measured_step(text)
    with pytest.raises(ConfigError, match="has not logged its speed yet"):
        measured_step(written_run(str(tmp_path / "new"), ranks=1, samples_per_s=None))


def test_more_ranks_than_samples_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="global_batch to at least 9"):
        RunPlan.of(tiny_config, 9, on_gpu=False)
