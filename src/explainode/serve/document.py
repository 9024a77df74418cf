"""What a job found as one file that needs nothing else: to keep, to print, to send."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from explainode.jobs.showing import Showing
from explainode.report.colors import heatmap_to_rgb
from explainode.report.markup import Markup, tag

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #171b23; background: #fff; }
table { border-collapse: collapse; } th, td { padding: .4rem .6rem; vertical-align: top; text-align: left; }
img { width: 11rem; height: 11rem; image-rendering: pixelated; display: block; } .quiet { color: #5b6472; font-size: .85rem; }
"""


def job_document(events: Sequence[Mapping[str, Any]], wish: Showing) -> str:
    """HTML with a row per method and a column per network, and what was said of each."""
    networks = [event for event in events if event["kind"] == "network"]
    maps = {(event["network"], event["method"]): event for event in events if event["kind"] == "map"}
    scores = {(event["network"], event["method"]): event for event in events if event["kind"] == "scores"}
    refused = {(event["network"], event["method"]): event["sentence"] for event in events if event["kind"] == "refused"}
    head = tag("tr", tag("th", "method"), *(tag("th", _said(event)) for event in networks))
    rows = []
    for method in wish.methods:
        cells = []
        for event in networks:
            key = event["network"], method
            if key in maps:
                cells.append(tag("td", _picture(maps[key]["heat"]), *_notes(maps[key], scores.get(key))))
            else:
                cells.append(tag("td", tag("p", refused.get(key, "not computed"), class_="quiet")))
        rows.append(tag("tr", tag("th", method), *cells))
    conditions = (
        f"noise {wish.noise}, seed {wish.seed}; each map has its own scale: red speaks for the class, blue against it."
    )
    body = tag("body", tag("h1", "Explanations of one picture"), tag("p", conditions), tag("table", head, *rows))
    style = tag("style", Markup(STYLE))
    return f"<!doctype html>\n{tag('html', tag('head', tag('meta', charset='utf-8'), tag('title', 'Explanations'), style), body, lang='en')}\n"


def _said(event: Mapping[str, Any]) -> list[Any]:
    best = event["predicted"][0]
    said = f"says {best['name']} ({best['probability']:.2f}); explained: {event['explained_name']} ({event['explained_probability']:.2f})"
    return [event["network"], tag("div", said, class_="quiet")]


def _notes(found: Mapping[str, Any], scored: Mapping[str, Any] | None) -> list[Any]:
    said = [found["blank"]] if found["blank"] else []
    said.append(f"{found['seconds']:.2f} s, {found['passes'][0]} forward and {found['passes'][1]} backward passes")
    if scored and "deletion" in scored:
        said.append(f"insertion {scored['insertion']:.3f}, deletion {scored['deletion']:.3f}")
        if scored["random_maps"]:
            said.append(f"ahead of {scored['ahead_of']} of {scored['random_maps']} random maps")
    if scored and "sensitivity" in scored:
        said.append(f"sensitivity {scored['sensitivity']:.3f} (noise alone: {scored['floor']:.3f})")
    return [tag("div", line, class_="quiet") for line in said]


def _picture(heat: np.ndarray) -> Markup:
    file = io.BytesIO()
    Image.fromarray(heatmap_to_rgb(heat)).save(file, "PNG")
    return tag("img", src="data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), alt="attribution map")
