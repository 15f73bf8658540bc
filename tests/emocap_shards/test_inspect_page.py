"""Tests that the page loads nothing from other addresses, executes nothing, and shows texts of a dataset as text."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from emocap_shards.annotation import dump_annotation
from emocap_shards.inspecting.counters import Counts
from emocap_shards.inspecting.page import page
from emocap_shards.inspecting.summary import summarise
from emocap_shards.sample import Caption
from emocap_shards.writer import write_shards
from forged import forge, sample
from shard_cases import encode, records

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 12345 * 67 }}'&"


class Elements(HTMLParser):
    """Collects every start tag with its attributes, every text, and the tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "hr", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def whole(tmp_path):
    write_shards(records(10), tmp_path, samples_per_shard=4)
    return page(summarise(tmp_path))


@pytest.fixture
def evil(tmp_path):
    caption = Caption(EVIL, (EVIL, "\u202ebackwards"), EVIL)
    labels = {EVIL: EVIL, f"number {EVIL}": 1.0, "emotion": ""}
    annotation = dump_annotation(caption, labels, [caption, Caption("Again.", (), "")])
    members = {"png": encode(1), "json": annotation}
    folder = tmp_path / "evil"
    folder.mkdir()
    forge(folder, [[sample(f"<b>{number}", members) for number in range(3)]])
    return page(summarise(folder))


def test_the_page_is_whole_html_with_every_section_and_face(whole):
    elements = Elements(whole)
    assert whole.startswith("<!doctype html>")
    assert elements.open == []
    assert [attrs["id"] for attrs in elements.named("h2")] == [
        target["href"].removeprefix("#") for target in elements.named("a")
    ]
    assert len(elements.named("img")) == 10
    assert {"Face 3 is glad.", "Eyes wide.", "Glad, number 3."} <= set(elements.texts)


def test_faces_come_right_after_the_summary(whole):
    found = re.findall(r'<h2 id="(\w+)">', whole)
    assert found == ["faces", "labels", "captions", "words", "repeats", "images"]
    assert re.findall(r'href="#(\w+)"', whole) == found


def test_the_page_asks_for_nothing_from_elsewhere_and_runs_nothing(whole, evil):
    for text in (whole, evil):
        elements = Elements(text)
        addresses = [value for _, attrs in elements.tags for name, value in attrs.items() if name in {"src", "href"}]
        assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
        assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in elements.tags}
        assert not [name for _, attrs in elements.tags for name in attrs if name.startswith("on") or name == "style"]
        assert "url(" not in text
        assert "@import" not in text


def test_the_policy_allows_inline_images_and_this_style_alone(whole):
    (policy,) = [
        attrs["content"] for attrs in Elements(whole).named("meta") if "content" in attrs and "http-equiv" in attrs
    ]
    style = re.search(r"<style>(.*?)</style>", whole, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_data_is_shown_as_text_wherever_it_is(evil):
    elements = Elements(evil)
    assert elements.open == []
    assert len(elements.named("img")) == 3
    assert [attrs["alt"] for attrs in elements.named("img")] == ["<b>0", "<b>1", "<b>2"]
    assert elements.texts.count(EVIL) > 10
    assert "827115" not in "".join(elements.texts)
    assert "(empty)" in elements.texts


def test_the_url_is_escaped_too(tmp_path):
    write_shards(records(2), tmp_path)
    summary = summarise(tmp_path)
    text = page(replace(summary, stock=replace(summary.stock, url=EVIL)))
    assert EVIL in Elements(text).texts
    assert "<script" not in text


def test_long_captions_are_cut_so_that_the_page_stays_small(tmp_path):
    caption = Caption("word " * 4_000, ("long " * 4_000,) * 30, "more " * 4_000)
    members = {"png": encode(1, size=400), "json": dump_annotation(caption, {"emotion": "joy " * 900}, [caption] * 5)}
    forge(tmp_path, [[sample(str(number), members) for number in range(3)]])
    text = page(summarise(tmp_path))
    assert len(text) < 200_000
    assert "and 3 more captions" in text


def test_what_is_exact_and_what_is_sampled_is_said(tmp_path):
    write_shards(records(10), tmp_path)
    assert "Everything else comes from all 10 samples." in page(summarise(tmp_path))
    part = " ".join(page(summarise(tmp_path, look_at=5)).split())
    assert "Everything else comes from 5 samples, spread evenly (50 % of the dataset)." in part
    assert "at least as many texts repeat" in part


def test_damage_and_an_early_end_are_on_the_page(tmp_path):
    write_shards(records(10), tmp_path, samples_per_shard=4)
    (tmp_path / "shard-000001.tar").unlink()
    assert "4 of the samples are damaged" in page(summarise(tmp_path))
    assert "The time was up" in page(summarise(tmp_path, seconds=0))


def test_a_dataset_of_which_nothing_was_seen_has_a_page(tmp_path):
    write_shards(records(3), tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    assert Elements(page(summarise(tmp_path))).open == []
    assert Elements(page(summarise(tmp_path, look_at=0))).open == []


def test_bounds_are_on_the_page_where_texts_were_forgotten(tmp_path):
    write_shards(records(10), tmp_path)
    summary = summarise(tmp_path)
    assert "≤ 20 %" not in page(summary)
    part = summary.parts["summary"]
    forgot = replace(part, texts=Counts(10, 8, 3, 1, ()), vocabulary=Counts(100, 50, 25, 1, ()))
    text = page(replace(summary, parts={"summary": forgot}))
    assert '<td class="number">≥ 8</td><td class="number">≤ 20 %</td>' in text
    assert '<td class="number">≥ 50</td><td class="number">-</td>' in text
