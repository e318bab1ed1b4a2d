"""Pages that need nothing but themselves: HTML with its style and plots inside."""

from collections.abc import Iterable, Sequence
from html import escape

from tidegate.rollout.texts import escaped

__all__ = ["heading", "page", "paragraph", "preformatted", "table"]

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2rem auto; padding: 0 1rem;
  max-width: 64rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
th, td {{ text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #d0d7de;
  vertical-align: top; }}
svg {{ max-width: 100%; height: auto; }}
pre {{ background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px; }}
.good {{ color: #1a7f37; font-weight: 600; }} .bad {{ color: #cf222e; font-weight: 600; }}
.open {{ color: #9a6700; font-weight: 600; }} .dim {{ color: #656d76; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a page. Its policy forbids the browser to load anything.

    Args:
        title: The title, as text.
        parts: The parts, as HTML.
    """
    return _PAGE.format(title=_html(title), body="\n".join(parts))


def heading(text: str, level: int = 2) -> str:
    """Returns a heading."""
    return f"<h{level}>{_html(text)}</h{level}>"


def paragraph(text: str, style: str = "") -> str:
    """Returns a paragraph, in one of the page's styles."""
    return f'<p class="{style}">{_html(text)}</p>' if style else f"<p>{_html(text)}</p>"


def preformatted(text: str) -> str:
    """Returns text whose lines and spaces stay as they are."""
    return f"<pre>{_html(text)}</pre>"


def table(titles: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> str:
    """Returns a table; a cell is text, or text and one of the page's styles."""
    lines = ["<table>", f"<tr>{''.join(f'<th>{_html(each)}</th>' for each in titles)}</tr>"]
    lines += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _cell(cell: str | tuple[str, str]) -> str:
    if isinstance(cell, str):
        return f"<td>{_html(cell)}</td>"
    text, style = cell
    return f'<td class="{style}">{_html(text)}</td>'


def _html(text: str) -> str:
    return escape(escaped(text))
