"""The report's HTML: tables, figures and one page around them that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.comparison import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #5f6b76; --line: #dde2e7; --ground: #fff; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --faint: #9aa6b2; --line: #333b44; --ground: #14181c; --warn: #3a3013; }
}
body { max-width: 1000px; margin: 2.5rem auto; padding: 0 1.5rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.3; font-weight: 600; margin-bottom: 1.5rem; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.6rem 0 .3rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1rem 0 .3rem; }
p, figcaption { color: var(--faint); max-width: 74ch; margin: 0 0 .8rem; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
thead th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--line); }
tr.first:not(:first-child) td { border-top: 1px solid var(--line); }
table.facts td:first-child { color: var(--faint); }
table.facts td:last-child { white-space: normal; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; font-family: inherit; }
.note { background: var(--warn); padding: .8rem 1.1rem; border-radius: 6px; }
.note strong { font-weight: 600; }
.note ul { margin: .4rem 0 0; padding-left: 1.2rem; font-size: .85rem; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .6rem 0; }
.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; }
.frames img { width: 100%; border-radius: 3px; display: block; }
.frames figcaption { font-size: .8rem; margin: .15rem 0 .4rem; }
"""


def fill_page(title: str, sections: Sequence[str]) -> str:
    """A complete page of sections that are HTML already; `title` is text."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(filter(None, sections))
        + "\n</html>\n"
    )


def render_table(table: Table, heading: str, caption: str) -> str:
    """A section with a table; nothing where the table has no rows. A table without header names is one of facts."""
    if not table.rows:
        return ""
    named = any(table.header)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for position, row in enumerate(table.rows):
        repeats = position > 0 and table.rows[position - 1][0] == row[0]
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        rows.append(f"<tr{'' if repeats or not named else ' class=first'}>{cells}</tr>")
    thead = f"<thead><tr>{head}</tr></thead>" if named else ""
    body = "\n".join(rows)
    return (
        f"<h2>{escape(heading)}</h2>\n<p>{escape(caption)}</p>\n"
        f"<div class=scroll><table{'' if named else ' class=facts'}>{thead}<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(heading: str, svg: str, caption: str) -> str:
    """A section with a drawing; nothing where there is none."""
    if not svg:
        return ""
    return f"<h2>{escape(heading)}</h2>\n<figure><figcaption>{escape(caption)}</figcaption>\n{svg}</figure>"


def note(text: str, items: Sequence[str]) -> str:
    """Something that must not be overlooked."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<div class=note><strong>{escape(text)}</strong><ul>{listed}</ul></div>"
