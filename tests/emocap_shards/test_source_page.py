"""Tests the code of docs/extend/source.md: `pack` reads with the source of the page."""

import json
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.manifest import read_manifest
from emocap_shards.sample import Caption
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.row_source import RowSource
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources import choice
from pack_cases import samples_of
from shard_cases import encode

PAGE = Path(__file__).parents[2] / "docs/extend/source.md"
IMAGES = 7


def snippets() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [textwrap.dedent(each) for each in found]


@pytest.fixture
def choice_of_the_page() -> ModuleType:
    """Returns a copy of choice.py in which `_local` has the branch of the page."""
    source, branch = snippets()
    module = ModuleType("choice_of_the_page")
    exec(source, module.__dict__)
    text = Path(str(choice.__file__)).read_text(encoding="utf-8")
    before = '    if path.is_file() and path.suffix.lower() in {".json", *JSON_LINES, *_DELIMITERS}:\n'
    assert text.count(before) == 1
    exec(text.replace(before, textwrap.indent(branch, "    ") + before), module.__dict__)
    return module


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """Writes images and a document. Image N has the caption "N first"; if N is even, it has "N second" too."""
    (tmp_path / "train").mkdir()
    for number in range(IMAGES):
        (tmp_path / "train" / f"{number:04d}.png").write_bytes(encode(number))
    images = [{"id": 10 + number, "file_name": f"{number:04d}.png"} for number in range(IMAGES)]
    captions = [{"image_id": 10 + number, "caption": f"{number} first\n"} for number in reversed(range(IMAGES))]
    captions += [{"image_id": 10 + number, "caption": f"{number} second"} for number in range(0, IMAGES, 2)]
    path = tmp_path / "captions_train.json"
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    return path


def opened(module: ModuleType, document: Path) -> Any:
    return module.open_source(document, image_root=document.parent / "train")


def test_a_document_is_packed_with_all_captions(choice_of_the_page: ModuleType, document: Path, tmp_path: Path) -> None:
    source = opened(choice_of_the_page, document)
    assert isinstance(source, RowSource)
    packed = pack(source, tmp_path / "out", PackConfig(ShardSize(3)))
    assert packed.manifest.samples == IMAGES
    assert packed.skipped == ()
    found = [load_annotation(each.annotation)[0] for each in samples_of(str(tmp_path / "out"))]
    turns = [("first", "second") if number % 2 == 0 else ("first",) for number in range(IMAGES)]
    assert found == [tuple(Caption(f"{number} {turn}", (), "") for turn in each) for number, each in enumerate(turns)]


def test_an_interrupted_pack_resumes_to_the_same_bytes(
    choice_of_the_page: ModuleType, document: Path, tmp_path: Path
) -> None:
    def interrupt(progress: Any) -> None:
        if progress.rows == 5:
            raise KeyboardInterrupt

    source, options = opened(choice_of_the_page, document), PackConfig(ShardSize(3))
    whole = pack(source, tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", options, progress=interrupt)
    assert pack(source, tmp_path / "out", options).resumed == 1
    assert read_manifest(str(tmp_path / "out")) == whole.manifest


def test_an_image_without_a_caption_is_a_bad_row(
    choice_of_the_page: ModuleType, document: Path, tmp_path: Path
) -> None:
    tree = json.loads(document.read_text())
    tree["images"].append({"id": 99, "file_name": "0000.png"})
    document.write_text(json.dumps(tree))
    packed = pack(opened(choice_of_the_page, document), tmp_path / "out", PackConfig(skip_bad=1))
    assert [str(bad) for bad in packed.skipped] == [f"{document}: 0000.png: the image has no caption"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"annotations": 1}', "no JSON"])
def test_another_document_is_refused(choice_of_the_page: ModuleType, document: Path, text: str) -> None:
    document.write_text(text)
    with pytest.raises(RecordError, match="is not a document of COCO captions"):
        list(opened(choice_of_the_page, document).rows())
