"""Tests that no template of a path and no value in it leads out of the folder of a copy."""

import os
from pathlib import Path

import pytest
from benchmark_trees import image
from emocap_shards.writing.sources.folder import natural_order
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled, fixed_folder, is_contained

VALUES = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="./\\a\0~*{} ", max_size=20),
    st.sampled_from(
        ["..", "../..", "/", "/etc/passwd", "inner/../../secret.jpg", "out", "a.jpg", "inner/a.jpg", "pipe"]
    ),
)
TEMPLATES = st.sampled_from(["{a}", "inner/{a}", "{a}/{b}", "inner/{a}.jpg", "{a}{b}", "./{a}", "{a:05d}/{b}"])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy beside a secret file, with links and pipes that a careless reader would follow."""
    base = tmp_path_factory.mktemp("base")
    image(base / "secret.jpg")
    root = base / "copy"
    image(root / "a.jpg")
    image(root / "inner/a.jpg")
    (root / "out").symlink_to(base)
    (root / "out.jpg").symlink_to(base / "secret.jpg")
    (root / "within.jpg").symlink_to(root / "inner/a.jpg")
    os.mkfifo(root / "pipe")
    return root


@given(template=TEMPLATES, first=VALUES, second=VALUES)
def test_no_values_of_a_template_lead_out_of_the_copy(copy: Path, template: str, first: str, second: str) -> None:
    try:
        path = filled(template, {"a": first, "b": second})
    except BadPath:
        return
    found = Tree(copy).file(path)
    if isinstance(found, Path):
        assert found.is_file()
        assert Path(os.path.realpath(found)).is_relative_to(copy)
        assert is_contained(path)
    frames = Tree(copy).frames(path, "*.jpg")
    assert isinstance(frames, Problem) or all(Path(os.path.realpath(each)).is_relative_to(copy) for each in frames)


@given(value=st.text(max_size=20))
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert filled("x/{a}", {"a": value, "b": "never"}) == f"x/{value}"


@given(number=st.integers(0, 10**9), digits=st.integers(1, 9))
def test_a_number_is_written_with_at_least_its_digits(number: int, digits: int) -> None:
    written = filled(f"{{a:0{digits}d}}", {"a": str(number)})
    assert int(written) == number
    assert len(written) == max(digits, len(str(number)))


@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "٣"])
def test_a_field_with_digits_refuses_what_is_not_a_whole_number(value: str) -> None:
    with pytest.raises(BadPath, match="a is not a whole number"):
        filled("{a:05d}", {"a": value})


def test_a_field_without_a_value_is_named() -> None:
    with pytest.raises(BadPath, match="no b"):
        filled("{a}/{b}", {"a": "1"})


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("b.jpg", "missing image"),
        ("a.jpg/b.jpg", "missing image"),
        ("inner", "not a regular file"),
        ("pipe", "not a regular file"),
        ("out.jpg", "path leads out of the folder"),
        ("out/secret.jpg", "path leads out of the folder"),
        ("../secret.jpg", "path leads out of the folder"),
        ("", "path leads out of the folder"),
        ("a" * 300, "unreadable path (File name too long)"),
        ("\ud800", "unreadable path (not a name)"),
    ],
)
def test_what_is_not_a_file_of_the_copy_is_a_problem(copy: Path, path: str, kind: str) -> None:
    assert Tree(copy).file(path) == Problem(kind, path)


def test_a_link_within_the_copy_and_a_link_to_the_copy_are_followed(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    assert Tree(copy).file("within.jpg") == copy / "within.jpg"
    assert Tree(tmp_path / "link").file("inner/a.jpg") == tmp_path / "link/inner/a.jpg"


def test_a_pattern_reports_a_link_out_of_the_copy_and_does_not_follow_it(copy: Path) -> None:
    assert list(Tree(copy).glob("*/*.jpg")) == ["inner/a.jpg", "out"]


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["f10", "f9", "f", "10", "9", "f9a"]
    assert sorted(names, key=natural_order) == ["9", "10", "f", "f9", "f9a", "f10"]


@pytest.mark.parametrize(
    ("template", "folder"),
    [("a/b/{x}.jpg", "a/b"), ("a/{x}/b/c.jpg", "a"), ("{x}", ""), ("a/S*/b.txt", "a"), ("a.csv", "")],
)
def test_the_fixed_folder_of_a_template_ends_before_its_first_field(template: str, folder: str) -> None:
    assert fixed_folder(template) == folder
