"""A page for the browser: one HTML file that shows reports and a comparison, and needs nothing else.

Markup, style and scripts lie in ``templates`` beside this module; the page carries copies of them and its data.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from revbifpn.memory.plots import CATEGORY_COLOURS, FAMILY_COLOURS
from revbifpn.memory.report import CATEGORIES, CATEGORY_TEXT, MemoryReport
from revbifpn.memory.rows import ACCURACY, MEMORY, MEMORY_TEXT, PRINTED, ComparisonRow, accuracies_in

#: One script in these parts: each uses names of those before it.
_SCRIPTS = ("base.js", "report.js", "comparison.js", "page.js")
_TENSOR_TEXTS = ("dtype", "category", "kind", "operator", "module", "stage", "stream", "phase")


def write_page(
    path: Path,
    reports: Sequence[MemoryReport],
    rows: Sequence[ComparisonRow] = (),
    title: str = "Memory of training steps",
    environment: str = "",
    memory: str = "per_sample",
) -> None:
    """Write a page that works without a network, from a file as well as from a server.

    Args:
        path: of the HTML file; its folder is made if it is not there.
        reports: the page switches between them: by model, and by mode where there are several of one model.
        rows: the comparison; none leaves it out.
        title: of the page.
        environment: one line about versions and machine.
        memory: the field of the rows that the charts show; one of :data:`.MEMORY`.

    Raises:
        ValueError: if there is nothing to show.
    """
    if not reports and not rows:
        raise ValueError("a page needs at least one report or one row of a comparison")
    strings: dict[str, int] = {}
    data = {
        "environment": environment,
        "printed": PRINTED,
        "memory": {"key": memory, "name": MEMORY[memory], "text": MEMORY_TEXT[memory]},
        "memories": MEMORY,
        "accuracies": [{"key": key, "name": ACCURACY[key]} for key in accuracies_in(rows)],
        "categories": [{"name": name, "text": CATEGORY_TEXT[name], "colour": CATEGORY_COLOURS[name]} for name in CATEGORIES],
        "familyColours": FAMILY_COLOURS,
        "reports": [_packed(report, strings) for report in reports],
        "rows": [asdict(row) for row in rows],
        "strings": list(strings),
    }
    parts = {
        "title": html.escape(title),
        "css": _template("page.css"),
        "js": "\n\n".join(map(_template, _SCRIPTS)),
        # As \u003c, no "<" can end the script element or open a comment in it.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # One pass, so that a name such as "{{js}}" in the data stays what it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _template("page.html"))
    path.write_text(page, encoding="utf-8")


def _packed(report: MemoryReport, strings: dict[str, int]) -> dict[str, Any]:
    """The report as plain data; texts of the long lists are numbers in ``strings``, which makes pages three times smaller."""

    def number(text: str) -> int:
        return strings.setdefault(text, len(strings))

    return report.to_dict() | {
        "timeline": [[p.index, p.nbytes, number(p.phase), number(p.operator), number(p.module)] for p in report.timeline],
        "tensors": [
            [t.nbytes, t.shape, *(number(getattr(t, name)) for name in _TENSOR_TEXTS)]  # base.js reads them in this order
            for t in report.tensors
        ],
    }


def _template(name: str) -> str:
    return files("revbifpn.memory").joinpath("templates", name).read_text(encoding="utf-8").rstrip()
