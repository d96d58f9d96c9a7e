"""A hook of mkdocs.yml: errors as a sign that no line breaks at; wide tables without contents beside them."""

import re
from typing import Any

CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>)", re.DOTALL)
WIDE = ("tables/", "results.md", "learned.md", "stf_digits.md", "objectives.md")
ERROR = re.compile(r"(?<=\d)\s+\+-\s+(\d[\d.]*(?:e-\d+)?)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Give pages of wide tables the whole width."""
    if page.file.src_uri.startswith(WIDE):
        page.meta["hide"] = ["toc"]


def on_page_content(html: str, **_: Any) -> str:
    """Return the page with +- replaced, but for code."""
    parts = CODE.split(html)
    return "".join(part if CODE.fullmatch(part) else _typeset(part) for part in parts)


def _typeset(html: str) -> str:
    return ERROR.sub(_unbroken, html).replace("+-", "\N{PLUS-MINUS SIGN}")


def _unbroken(error: re.Match[str]) -> str:
    number = error[1].replace("-", "-\N{WORD JOINER}")
    return f"\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}{number}"
