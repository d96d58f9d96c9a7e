"""A hook of mkdocs.yml: pages show +- as a sign that never begins or ends a line."""

import re
from typing import Any

CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>)", re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """The page with its errors in typography; code stays as it is."""
    parts = CODE.split(html)
    return "".join(part if CODE.fullmatch(part) else _typeset(part) for part in parts)


def _typeset(html: str) -> str:
    between = re.sub(r"(?<=\d)\s+\+-\s+(?=\d)", "\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}", html)
    return between.replace("+-", "\N{PLUS-MINUS SIGN}")
