"""Tests docs/extend/task.md: its code, put into a copy of the package, adds a task that all parts know."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "extend" / "task.md"
IMPORT = "from emocap_pretrain.evaluation.alignment import Alignment\n"
PROGRAM = """
import json, sys
import torch
import pretrain_fakes
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.training.loop import pretrain
from emocap_pretrain.run_folder.folder import RunFolder
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

torch.set_num_threads(1)
pretrain_fakes.stand_alone()
config = Config.model_validate_json(sys.argv[1])
pretrain(config, pretrain_fakes.FakeRuntime())
report = RunFolder(open_store(config.url)).report(config.steps)
restored = restore(config.url)
embedder = Embedder(restored.model, restored.tokenizer)
samples = [embedder.cropped(sample) for sample in Stream(url=config.evaluation.url, global_batch=1).read(range(24))]
images = [embedder.images([sample])[0].double() for sample in samples]
texts = [embedder.texts([sample.caption.global_])[0].double() for sample in samples]

def said(*words):
    done = CliRunner().invoke(app, ["evaluate", *words])
    assert done.exit_code == 0, done.output
    return done.stdout

(result,) = [each for each in report.results if each.task == "alignment"]
print(json.dumps({
    "value": result.metrics()["alignment/cosine"],
    "baseline": result.scores[0].baseline.value,
    "own": sum(float(image @ text) for image, text in zip(images, texts)) / 24,
    "any": sum(float(image @ text) for image in images for text in texts) / 24**2,
    "metrics": MlflowClient(config.tracking.uri).get_run(report.run_id).data.metrics,
    "markdown": report.markdown(),
    "listed": said("--list"),
    "shown": said(config.url, "--data", config.evaluation.url, "--task", "alignment"),
}))
"""


def snippets() -> list[str]:
    found = re.findall(r"^    ```python\n(.*?)^    ```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(each) for each in found]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Returns a folder with a copy of the package that contains the task of the page."""
    task, entry = snippets()
    copy = tmp_path / "package" / "emocap_pretrain"
    shutil.copytree(ROOT / "emocap_pretrain", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "evaluation" / "alignment.py").write_text(task)
    tasks = copy / "evaluation" / "tasks.py"
    text, replaced = re.subn(r"^TASKS: .*?^\)\n", lambda _: entry, tasks.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert replaced == 1
    first = "from emocap_pretrain.evaluation."  # The first one in alphabetical order.
    assert first in text
    tasks.write_text(text.replace(first, IMPORT + first, 1))
    return copy.parent


def test_the_task_of_the_page_is_run_reported_tracked_listed_and_printed(tiny_config: Config, package: Path) -> None:
    config = changed(tiny_config, steps=2, evaluation__tasks=["zero_shot", "alignment"], evaluation__batch=7)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, config.model_dump_json(by_alias=True)],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(HERE)]), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # One sample at a time is another tiling of the products than seven: float32 vectors agree to their last bits.
    assert told["value"] == pytest.approx(told["own"], abs=1e-6)
    assert told["baseline"] == pytest.approx(told["any"], abs=1e-6)
    assert told["metrics"]["alignment/cosine"] == told["value"]
    assert "zero_shot/uar" in told["metrics"]
    row = f"{told['value']:.4g}  (any caption {told['baseline']:.4g})"
    assert f"| cosine of face and caption | {row} |" in told["markdown"]
    assert "mean cosine between a face and its own caption" in told["listed"]
    assert row in told["shown"]


def test_the_page_is_as_tidy_as_the_code(package: Path) -> None:
    config, folder = ("--no-cache", "--config", str(ROOT / "pyproject.toml")), str(package / "emocap_pretrain")
    for check in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *check, *config, folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
