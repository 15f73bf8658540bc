import re
from dataclasses import replace
from pathlib import Path

import pytest
from emocap_shards.writer import write_shards
from pretrain_fakes import changed

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.task import Task
from emocap_pretrain.evaluation.tasks import (
    DEFAULT,
    TASKS,
    prepare,
    require_matrix,
    require_score,
    tasks_of,
    were_prepared,
)

PACKAGE = Path(__file__).parents[3] / "emocap_pretrain"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_unique_name_that_mlflow_accepts_and_a_description(task: type[Task]) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", task.name)
    assert [each.name for each in TASKS].count(task.name) == 1
    assert len(task.about.splitlines()) == 1
    assert isinstance(task(EvaluationConfig()), Task)


def test_settings_without_tasks_have_the_default_ones() -> None:
    assert [type(task) for task in tasks_of(EvaluationConfig())] == list(DEFAULT)


def test_the_tasks_come_in_the_order_of_the_settings() -> None:
    names = [task.name for task in TASKS][::-1]
    assert [task.name for task in tasks_of(EvaluationConfig(tasks=tuple(names)))] == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zero_shoot"], "there is no task 'zero_shoot'; did you mean zero_shot?"),
        (["os.system"], f"there is no task 'os.system'; known here: {', '.join(task.name for task in TASKS)}."),
        (["retrieval", "retrieval"], "retrieval comes twice"),
    ],
)
def test_an_unknown_task_is_refused_before_anything_is_read(names: list[str], message: str) -> None:
    for act in (tasks_of, prepare):
        with pytest.raises(ConfigError, match=re.escape(f"evaluation.tasks: {message}")):
            act(EvaluationConfig(tasks=tuple(names)))


@pytest.mark.parametrize(
    ("keep_best", "message"),
    [
        ("retrieval/recall", "evaluation.tasks does not have 'retrieval'; the tasks of this run are zero_shot."),
        ("zero_shot/uaar", "zero_shot has no score 'uaar' that a checkpoint can be chosen by; take one of uar, "),
    ],
)
def test_a_score_that_no_task_of_the_run_has_cannot_choose_the_best_checkpoint(keep_best: str, message: str) -> None:
    require_score("zero_shot/uar", EvaluationConfig())
    require_score(None, EvaluationConfig())
    with pytest.raises(ConfigError, match=re.escape(f"checkpoint.keep_best={keep_best}: {message}")):
        require_score(keep_best, EvaluationConfig())


def test_nothing_is_prepared_without_a_dataset() -> None:
    assert prepare(EvaluationConfig()) == []


@pytest.mark.parametrize(("values", "is_refused"), [(24, False), (25, True)])
def test_a_label_of_too_many_values_is_refused_before_anything_is_computed(
    tmp_path: Path, values: int, *, is_refused: bool
) -> None:
    faces = [
        replace(each, labels={"emotion": "anger", "name": f"person {number}", "age": number})
        for number, each in enumerate(records(values, pixels=32))
    ]
    write_shards(faces, str(tmp_path / "faces"), samples_per_shard=30)
    settings = EvaluationConfig(url=str(tmp_path / "faces"), label="emotion", by=("age", "name"))
    if is_refused:
        with pytest.raises(ConfigError, match=r"evaluation\.by=name: it has 25 values, and at most 24"):
            prepare(settings)
    else:
        prepare(settings)


def test_a_matrix_needs_a_task_that_gives_one() -> None:
    require_matrix(EvaluationConfig(tasks=("retrieval", "zero_shot")))
    with pytest.raises(ConfigError, match="--picture: retrieval, multiple_choice gives no confusion matrix"):
        require_matrix(EvaluationConfig(tasks=("retrieval", "multiple_choice")))


def test_a_checkpoint_with_the_same_settings_was_prepared_also_if_it_knew_fewer_of_them(tiny_config: Config) -> None:
    def checkpoint(**changes: object) -> Checkpoint:
        return Checkpoint(1, "a", (), {"config": changed(tiny_config, **changes).stored()})

    settings = tiny_config.stored()["evaluation"]
    assert were_prepared(checkpoint(), settings)
    assert not were_prepared(checkpoint(evaluation__label="mood"), settings)
    older = checkpoint()
    del older.state["config"]["evaluation"]["tasks"]
    assert were_prepared(older, settings)
    assert not were_prepared(older, changed(tiny_config, evaluation__tasks=["retrieval"]).stored()["evaluation"])
    for odd in (None, Checkpoint(1, "a", (), {}), Checkpoint(1, "a", (), {"config": {"evaluation": 3}})):
        assert not were_prepared(odd, settings)


def test_only_the_list_of_tasks_and_the_reader_of_old_reports_name_a_task() -> None:
    """A task is one file and one entry of a list: no other module names one."""
    allowed = {"evaluation/tasks.py", "run_folder/report.py"}
    # "Zero-shot" is also what the result of any task with prompts may be.
    allowed |= {"evaluation/domain.py", "run_folder/results.py"}
    # A suggested config chooses tasks, as a user does.
    allowed |= {"suggestion/settings.py", "suggestion/open_clip_config.py"}
    # open_clip has a flag with such a name.
    allowed |= {"suggestion/open_clip_flags.py", "suggestion/open_clip_notes.py"}
    # A class of transformers has such a name.
    allowed |= {"interop/transformers_models.py"}
    for task in TASKS:
        name = re.compile(task.name.replace("_", "[ _-]?"), re.IGNORECASE)
        own = {"evaluation/" + task.__module__.rpartition(".")[2] + ".py"}
        files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if name.search(path.read_text())}
        assert files - own <= allowed, f"{task.name} is named in {files - own - allowed}"
