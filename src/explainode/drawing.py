"""Maps beside their pictures, as a matplotlib figure: for notebooks and scripts. The report draws by itself (`report/`)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from explainode.errors import UserError

SHOWN = 8  # pictures of a batch that a notebook draws


def maps_figure(images: np.ndarray, heats: np.ndarray, titles: Sequence[str], overlay: bool = False) -> Any:
    """A row per picture: the picture, its map with a color bar; red speaks for the class, blue against it, white is zero.

    Args:
        images: (N, H, W, 3) in [0, 1].
        heats: (N, H, W), signed; each has its own scale, symmetric around zero, up to the 99th percentile of what is not zero.
        titles: N lines.
        overlay: draw the map over the picture in gray, as opaque as it is strong.

    Raises:
        UserError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib; pip install matplotlib") from error
    figure = Figure(figsize=(5.6, 2.5 * len(images) + 0.2), layout="constrained")
    axes = figure.subplots(len(images), 2, squeeze=False)
    for (left, right), image, heat, title in zip(axes, images, heats, titles, strict=True):
        strength = np.abs(heat[np.isfinite(heat) & (heat != 0)])
        limit = float(np.quantile(strength, 0.99)) if len(strength) else 1.0
        left.imshow(image.clip(0, 1), interpolation="nearest")
        left.set_title(title, fontsize=9)
        if overlay:
            right.imshow(image.mean(2).clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        opacity = (np.abs(np.nan_to_num(heat)) / limit).clip(0, 1) if overlay else None
        drawn = right.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=opacity, interpolation="nearest")
        if not len(strength):
            right.text(0.5, 0.5, "zero everywhere", ha="center", va="center", transform=right.transAxes, fontsize=9)
        figure.colorbar(drawn, ax=right, shrink=0.8).ax.tick_params(labelsize=7)
        for axis in (left, right):
            axis.axis("off")
    return figure


def figure_html(figure: Any, alt: str) -> str:
    """A figure as an image inside of HTML."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def table_html(head: Iterable[Any], rows: Iterable[Iterable[Any]], note: str = "") -> str:
    """A plain table; everything is text."""

    def line(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>" + (
        f"<p>{html.escape(note)}</p>" if note else ""
    )
