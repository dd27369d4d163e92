"""A page of HTML with text and figures."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import Any


def page(title: str, text: str, figures: Sequence[Any]) -> str:
    """An HTML page of its own: preformatted text, then pictures.

    Args:
        title: title of the page.
        text: shown as it is.
        figures: matplotlib Figures.
    """
    pictures = []
    for figure in figures:
        png = BytesIO()
        figure.savefig(png, format="png", dpi=100)
        pictures.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return "\n".join([head, f"<pre>{html.escape(text)}</pre>", *pictures, "</html>", ""])
