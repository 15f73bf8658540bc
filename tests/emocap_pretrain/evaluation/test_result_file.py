import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from result_files import classified, file_of, found_texts, mapped, samples, with_extras

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.comparison import ModelResults, compare
from emocap_pretrain.evaluation.result_file import LIMIT_BYTES, RESULT_FILE, load, save
from emocap_pretrain.run_folder.documents import REPORT
from emocap_pretrain.run_folder.outcomes import ClassOutcomes
from emocap_pretrain.run_folder.report import Report

OF = samples(30, persons=15)
FILE = file_of(
    "a",
    with_extras(classified(OF, 0.5, seed=1)),
    found_texts(OF, seed=1),
    thumbnails={"face/00000": "/9j/AAAA"},
    faces=[mapped("face/00000")],
)
FIRST_SCHEMA = Path(__file__).with_name("results_schema_1.json")


def test_a_file_is_read_back_with_all_that_was_found(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    save(path, FILE)
    found = load(path)
    assert found == FILE
    assert [each.outcomes for each in found.results()] == [each.outcomes for each in FILE.tasks]
    assert all(result.scored_samples == OF for result in found.results())
    # Two tasks on the same samples share them, and arrays take little room.
    assert len(found.samples) == 1
    assert len((tmp_path / "a.json").read_bytes().splitlines()) == 1


def test_a_file_of_the_first_schema_is_read() -> None:
    found = load(str(FIRST_SCHEMA))
    assert (found.model.name, found.model.step) == ("a", 60)
    assert [task.result.task for task in found.tasks] == ["guess", "search"]
    assert [len(each) for each in found.samples] == [6]
    assert json.loads(FIRST_SCHEMA.read_text(encoding="utf-8"))["schema"] == 1


def test_a_file_of_the_second_schema_is_read_and_its_scores_are_compared() -> None:
    found = load(str(FIRST_SCHEMA.with_name("results_schema_2.json")))
    kinds = [each.outcomes[0].kind for each in found.tasks]
    assert kinds == ["captions", "regions", "losses"]
    model = ModelResults.of(found)
    rows = [row for task in compare([model, model]).tasks for row in task.rows if row.differences[1]]
    names = {row.first.name for row in rows}
    assert names == {"bleu", "cider", "attention", "attention/eyes", "loss", "loss_global", "loss_local"}
    newer = json.loads(RESULT_FILE.dump(FILE))
    newer["tasks"][0]["outcomes"][0]["kind"] = "a kind of a later version"
    with pytest.raises(ValueError, match=f"a newer version wrote it, as schema {RESULT_FILE.schema + 1}: .*kind"):
        RESULT_FILE.of({**newer, "schema": RESULT_FILE.schema + 1})


def test_reports_do_not_contain_what_was_found_for_each_sample() -> None:
    results = FILE.results()
    report = Report("tiny", "/runs/tiny", 1, 1.0, 1, 1.0, results=results)
    text = REPORT.dump(report).decode()
    assert "face/00000" not in text
    assert REPORT.parse(text.encode()).results == results  # Outcomes are not compared.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.pop("tasks"), "tasks: field required"),
        (lambda body: body.update(made_by="somebody"), "made_by"),
        (lambda body: body["tasks"][0]["outcomes"][0].update(rows=[10**6, *range(29)]), "has no sample"),
        (
            lambda body: body["tasks"][0]["outcomes"][0].update(rows=[*range(29)]),
            "truth has 30 entries, and should have 29",
        ),
        (lambda body: body["tasks"][0]["outcomes"][0]["truth"].__setitem__(0, 99), "not below 4"),
        (lambda body: body["tasks"][0]["outcomes"][0]["truth"].__setitem__(0, -1), "greater than or equal to 0"),
        (lambda body: body["tasks"][0].update(samples=None), "have no samples"),
        (lambda body: body["tasks"][0].update(samples=7), "have no samples"),
        (lambda body: body["tasks"][0]["outcomes"][0].update(kind="code"), "kind"),
        (lambda body: body["samples"][0]["keys"].__setitem__(0, "x" * 2000), "at most 1024"),
        (lambda body: body["samples"][0]["groups"].pop(), "groups has 29 entries"),
        (lambda body: body["thumbnails"].update(x='"><script>'), "pattern"),
        (lambda body: body["thumbnails"].update(x="/9j/" + "A" * 30_000), "at most 20000"),
        (lambda body: body["faces"][0]["maps"][0]["weights"].append([1.0]), "different lengths"),
        (lambda body: body["faces"][0]["maps"][0]["weights"].__setitem__(0, [0, 0, 7]), "less than or equal to 1"),
        (lambda body: body["faces"][0]["maps"][0].update(weights=[[0.0] * 65]), "at most 64"),
        (lambda body: body["faces"][0]["maps"].clear(), "at least 1"),
        (lambda body: body["faces"].extend(body["faces"] * 12), "at most 12"),
        (lambda body: body["tasks"][1]["found"][0].update(rank=0), "greater than or equal to 1"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    body = json.loads(RESULT_FILE.dump(FILE))
    change(body)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load(str(path))


@pytest.mark.parametrize("content", [b"", b"[1]", b"\x00" * 20, b'{"tasks": NaN}', b"[" * 5000])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is not a file of `emocap evaluate --save`"):
        load(str(tmp_path / "a.json"))


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load(str(tmp_path / "a.json"))
    with pytest.raises(ConfigError, match="give a file"):
        load(str(tmp_path))
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(LIMIT_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than"):
        load(str(tmp_path / "b.json"))


def test_a_file_that_would_be_too_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.evaluation.result_file.LIMIT_BYTES", 100)
    with pytest.raises(ConfigError, match="30 samples need"):
        save(str(tmp_path / "a.json"), replace(FILE))
    assert not (tmp_path / "a.json").exists()


def test_results_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    of = replace(OF, keys=("x" * 1100, *OF.keys[1:]))
    with pytest.raises(ConfigError, match=r"results do not fit into the file .samples.0.keys.0: .* at most 1024"):
        save(str(tmp_path / "a.json"), file_of("a", classified(of, 0.5, seed=1)))
    assert not (tmp_path / "a.json").exists()


def test_rows_of_all_samples_take_no_room_in_a_file(tmp_path: Path) -> None:
    whole, chosen = classified(OF, 0.5, seed=1), classified(OF, 0.5, seed=1, task="chosen")
    (outcomes,) = chosen.outcomes
    assert isinstance(outcomes, ClassOutcomes)
    part = replace(outcomes, rows=(2, 1), truth=outcomes.truth[:2], predicted=outcomes.predicted[:2])
    file = file_of("a", whole, replace(chosen, outcomes=(part,)), found_texts(OF, seed=1))
    save(str(tmp_path / "a.json"), file)
    tasks = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["tasks"]
    assert [task["outcomes"][0]["rows"] for task in tasks] == [[], [2, 1], []]
    assert load(str(tmp_path / "a.json")) == file
