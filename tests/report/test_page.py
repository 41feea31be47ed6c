"""Claims about pages: one file, nothing from outside, everything escaped."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from musicgen_ft.report.page import (
    Row,
    Section,
    Tile,
    card,
    details,
    flow,
    grid,
    heading,
    join,
    listing,
    paragraph,
    render_page,
    table,
    tiles,
    write_page,
)

EVIL = "\"'><script>alert(1)</script><img src=//evil.example onerror=alert(2)>&amp;"


def page_of(body: Markup, **words: str) -> str:
    shell = {"title": "A corpus", "kicker": "Report", "lead": "All of it.", **words}
    return render_page(**shell, header=Markup(), sections=[Section(anchor="one", title="One", body=body)])


def test_a_page_has_what_a_browser_and_a_screen_reader_want(read_page: Any) -> None:
    page = read_page(page_of(paragraph("Something")))

    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert [tag for tag, _ in page.tags if tag in ("main", "nav", "header", "footer", "h1")] == [
        *("header", "h1", "nav", "main", "footer")
    ]
    assert {"href": "#one"} in page.all("a")
    assert page.all("section") == [{"id": "one", "aria-labelledby": "one-title"}]


def test_a_section_without_a_body_is_left_out_of_page_and_navigation(read_page: Any) -> None:
    assert read_page(page_of(Markup())).all("a") == [{"class": "skip", "href": "#main"}]


def test_a_page_asks_nobody_for_anything(read_page: Any) -> None:
    text = page_of(paragraph("Something"))
    page = read_page(text)

    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"// .*", "", text))
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_the_policy_allows_this_script_and_no_other(read_page: Any) -> None:
    page = read_page(page_of(paragraph("Something")))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    [script] = page.scripts

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize(
    "block",
    [
        paragraph(EVIL),
        heading(EVIL, EVIL),
        card(EVIL, paragraph(EVIL), note=EVIL),
        details(EVIL, paragraph(EVIL)),
        tiles([Tile(value=EVIL, label=EVIL, note=EVIL)]),
        table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]]),
        listing(EVIL, [Row(tag=EVIL, tone="drop", name=EVIL, notes=[EVIL, EVIL], figure=EVIL)], noun=EVIL, total=1),
    ],
)
def test_what_is_put_into_a_block_is_text(block: Markup, read_page: Any) -> None:
    page = read_page(page_of(block, title=EVIL, kicker=EVIL, lead=EVIL))

    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert EVIL in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_cards_stand_in_a_grid_or_in_columns(read_page: Any) -> None:
    cards = [card("One", paragraph("1")), card("Two", paragraph("2"))]
    page = read_page(join([grid(cards, width_rem=20), flow(cards)]))

    assert {"class": "grid", "style": "--width:20rem"} in page.all("div")
    assert len(page.all("section")) == 4
    assert grid([]) == flow([]) == ""


def test_a_long_list_can_be_filtered_and_says_how_much_of_it_is_shown(read_page: Any) -> None:
    rows = [Row(tag="dropped", tone="drop", name=f"track {number}") for number in range(30)]
    page = read_page(listing("Files", rows, noun="file", total=4812))

    assert len(page.all("li")) == 30
    assert "Showing 30 of 4,812 files" in page.text
    assert len(page.all("input")) == 1


def test_a_short_list_has_no_filter(read_page: Any) -> None:
    page = read_page(listing("Files", [Row(tag="dropped", tone="drop", name="one")], noun="file", total=1))

    assert page.all("input") == []
    assert "1 file" in page.text
    assert listing("Files", [], noun="file", total=0) == ""


def test_a_name_that_is_no_utf_8_does_not_stop_the_page(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", page_of(paragraph("caf\udce9.mp3 ♫")))
    assert "caf\\udce9.mp3 ♫" in (tmp_path / "page.html").read_text(encoding="utf-8")
