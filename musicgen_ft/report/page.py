"""One HTML page in one file: the shell, and the blocks that pages are built of.

Blocks are ``Markup``: what is put into one is escaped unless it is ``Markup`` itself. A page asks nobody for anything:
its styles, script, pictures and sounds are in it, and its content security policy forbids the rest.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup, escape

from musicgen_ft import __version__
from musicgen_ft.files import atomic_path

_SHELL = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="musicgen-ft {version}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<p class="kicker">{kicker}</p>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{header}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">
{sections}
</main>
<footer>Made by musicgen-ft {version}. This page is one file and loads nothing.</footer>
<script>
{script}</script>
</body>
</html>
""")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a page."""

    anchor: str
    """Its id, in links to it."""
    title: str
    """Its heading, and its name in the navigation."""
    body: Markup
    """What it shows."""
    lead: str | Markup = ""
    """One or two sentences under the heading."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key figure."""

    value: str
    """The figure with its unit."""
    label: str
    """What it counts."""
    note: str = ""
    """What it is made of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a listing."""

    tag: str
    """A word for its kind."""
    tone: str
    """Colour of the tag: ``keep``, ``trim``, ``drop`` or ``mute``."""
    name: str
    """What the row is about."""
    notes: Sequence[str] = ()
    """What is said of it, a line each."""
    figure: str | Markup = ""
    """A figure at its end."""
    picture: Markup | str = ""
    """A small picture before the figure."""


def render_page(*, title: str, kicker: str, lead: str | Markup, header: Markup, sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
        title: heading and title of the page.
        kicker: what kind of page it is, over the heading.
        lead: the page in one or two sentences.
        header: blocks under them.
        sections: in order; sections with an empty body are left out.
    """
    shown = [section for section in sections if section.body]
    script = _asset("page.js")
    return _SHELL.format(
        policy=_policy(script),
        version=__version__,
        title=title,
        kicker=kicker,
        lead=lead,
        header=header,
        style=Markup(_asset("page.css")),
        links=join(Markup('<li><a href="#{}">{}</a></li>').format(part.anchor, part.title) for part in shown),
        sections=join(map(_section, shown)),
        script=Markup(script),
    )


def write_page(path: Path, page: str) -> None:
    """Writes a page whole or not at all; bytes of file names that are no UTF-8 are written as escapes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", errors="backslashreplace"))


def join(parts: Iterable[Markup | str]) -> Markup:
    """The parts one after the other."""
    return Markup("\n").join(parts)


def tiles(shown: Sequence[Tile]) -> Markup:
    """Key figures side by side."""
    one = Markup('<div class="tile"><dt>{}</dt><dd><b>{}</b><span>{}</span></dd></div>')
    return Markup('<dl class="tiles">{}</dl>').format(join(one.format(t.label, t.value, t.note) for t in shown))


def grid(cards: Sequence[Markup], *, width_rem: int = 21) -> Markup:
    """Cards side by side, each at least so wide where the window is."""
    if not cards:
        return Markup()
    return Markup('<div class="grid" style="--width:{}rem">{}</div>').format(width_rem, join(cards))


def flow(cards: Sequence[Markup], *, width_rem: int = 21) -> Markup:
    """Cards of unlike heights, one under the other in columns at least so wide where the window is."""
    if not cards:
        return Markup()
    return Markup('<div class="flow" style="--width:{}rem">{}</div>').format(width_rem, join(cards))


def card(title: str, body: Markup, *, note: str = "") -> Markup:
    """A titled box."""
    note_line = Markup('<p class="note">{}</p>').format(note) if note else ""
    return Markup('<section class="card"><h3>{}</h3>{}{}</section>').format(title, note_line, body)


def paragraph(text: str | Markup, *, tone: str = "") -> Markup:
    """A paragraph; ``tone`` is ``muted`` or nothing."""
    return Markup('<p class="{}">{}</p>').format(tone, text)


def heading(text: str, note: str = "") -> Markup:
    """A heading inside a section, with a sentence under it."""
    return Markup('<h3 class="part">{}</h3>{}').format(text, paragraph(note, tone="muted") if note else "")


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str | Markup]]) -> Markup:
    """A table whose first column names the rows, and whose others hold figures."""
    head = join(Markup('<th scope="col">{}</th>').format(name) for name in header)
    lines = join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row[0], join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table><caption>{}</caption>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(caption, caption, head, lines)


def details(summary: str, body: Markup) -> Markup:
    """What opens on demand."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def listing(label: str, rows: Sequence[Row], *, noun: str, total: int) -> Markup:
    """A list of many rows, with a field that filters it when it is long.

    Args:
        label: what the rows are.
        rows: those to show, in order.
        noun: what one row is.
        total: how many there are; where that is more, a line says so.
    """
    if not rows:
        return Markup()
    nouns = noun if total == 1 else f"{noun}s"
    count = f"{total:,} {nouns}" if len(rows) == total else f"Showing {len(rows):,} of {total:,} {nouns}"
    is_long = len(rows) > 12
    search = Markup(
        '<label class="filter"><span>Filter</span><input type="search" placeholder="a name or a reason"'
        ' autocomplete="off"></label>'
    )
    return Markup(
        '<div class="listing"><p class="bar-above">{}<output aria-live="polite" data-count="{}">{}</output></p>'
        '<ul class="rows{}" role="list" tabindex="0" aria-label="{}">{}</ul></div>'
    ).format(search if is_long else "", count, count, " long" if is_long else "", label, join(map(_row, rows)))


def _section(section: Section) -> Markup:
    lead = Markup('<p class="section-lead">{}</p>').format(section.lead) if section.lead else ""
    return Markup('<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}{3}</section>').format(
        section.anchor, section.title, lead, section.body
    )


def _row(row: Row) -> Markup:
    notes = Markup("<br>").join(escape(note) for note in row.notes)
    return Markup(
        '<li><span class="tag {}">{}</span><span class="name">{}</span><span class="why">{}</span>'
        '<span class="small">{}</span><span class="figure">{}</span></li>'
    ).format(row.tone, row.tag, row.name, notes, row.picture, row.figure)


def _asset(name: str) -> str:
    return (files("musicgen_ft.report") / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """No request at all, and no script but ours: the second lock, should something slip through the escaping."""
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
