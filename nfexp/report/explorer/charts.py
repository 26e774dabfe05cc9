"""The charts of the explorer, declared in Vega-Lite: marks and scales.

The page fills in the data.
"""

from __future__ import annotations

from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
# Colours that people with any colour vision can tell apart (Okabe and Ito 2008)
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F")


# What the layers of the chart of an axis share
X = {
    "field": "x",
    "type": "ordinal",
    "sort": {"field": "order"},
    "axis": {"title": None, "labelAngle": 0, "labelLimit": 110, "labelOverlap": False},
}
BESIDE = {"field": "series", "type": "nominal", "sort": None}
LEGEND = {
    "orient": "top",
    "title": None,
    "columns": 4,
    "labelLimit": 220,
    "symbolOpacity": 1,
    "symbolType": "diamond",
}
COLOUR = BESIDE | {"scale": {"range": SERIES}, "legend": LEGEND}
PLACE = {"x": X, "xOffset": BESIDE, "color": COLOUR}
# What a pointer is told of a cell, and of a run
OF_CELL = [
    {"field": "x", "type": "nominal", "title": "value"},
    {"field": "series", "type": "nominal", "title": "series"},
    {"field": "said", "type": "nominal", "title": "mean [95% interval]"},
    {"field": "n", "type": "quantitative", "title": "completed runs"},
    {"field": "troubles", "type": "nominal", "title": "not completed"},
]
OF_RUN = [
    {"field": "job", "type": "nominal", "title": "run"},
    {"field": "x", "type": "nominal", "title": "value"},
    {"field": "series", "type": "nominal", "title": "series"},
    {"field": "seed", "type": "nominal", "title": "seed"},
    {"field": "y", "type": "quantitative", "title": "measured", "format": ".4~g"},
]


def ablation() -> dict[str, Any]:
    """Means with their intervals and the single runs along one axis.

    Data `cells`: x, order, series, mean, low, high, n, troubles, centre, decided, number. Data
    `runs`: x, order, series, y, run, job, seed, status, side. All of them are filled in by the
    page.
    """
    layers = [_halos(), _intervals(), _means(), _runs()]
    return _chart({"datasets": {"cells": [], "runs": []}, "layer": layers})


def _halos() -> dict[str, Any]:
    """A square behind each cell that a verdict was decided by."""
    mark = {"type": "point", "size": 420, "filled": True, "opacity": 0.35, "aria": False}
    return {
        "data": {"name": "cells"},
        "transform": [{"filter": "datum.decided"}],
        "mark": mark | {"color": "#F0C000", "shape": "square"},
        "encoding": {"x": X, "xOffset": BESIDE, "y": _y("mean")},
    }


def _intervals() -> dict[str, Any]:
    return {
        "data": {"name": "cells"},
        "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
        "encoding": PLACE | {"y": _y("low"), "y2": {"field": "high"}},
    }


def _means() -> dict[str, Any]:
    """A diamond at the mean of each cell; that of the centre has a grey edge."""
    is_centre = {"test": "datum.centre", "value": "#888888"}
    layer = {
        "y": _y("mean"),
        "stroke": {"condition": is_centre, "value": None},
        "strokeWidth": {"value": 3},
        "tooltip": OF_CELL,
        "description": {"field": "description"},
    }
    return {
        "data": {"name": "cells"},
        "mark": {"type": "point", "filled": True, "shape": "diamond", "size": 110},
        "encoding": PLACE | layer,
    }


def _runs() -> dict[str, Any]:
    """A point for each run.

    Those chosen for the clouds left and right are triangles that point there.
    """
    shapes = {
        "domain": ["", "left", "right"],
        "range": ["circle", "triangle-left", "triangle-right"],
    }
    is_chosen = {"test": "datum.side != ''", "value": 220}
    layer = {
        "y": _y("y"),
        "opacity": {"value": 0.5},
        "shape": {"field": "side", "type": "nominal", "scale": shapes, "legend": None},
        "size": {"condition": is_chosen, "value": 34},
        "tooltip": OF_RUN,
        "description": {"field": "description"},
    }
    return {
        "data": {"name": "runs"},
        "mark": {"type": "point", "filled": True, "size": 34, "cursor": "pointer"},
        "encoding": PLACE | layer,
    }


def _y(field: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "scale": {"zero": False, "nice": True}}


def samples() -> dict[str, Any]:
    """A cloud over the draws of its target, in a square frame.

    Data `draws` and `cloud`: x, y in data units. The page sets the domains of both axes.
    """
    axes = {}
    for name in ("x", "y"):
        axes[name] = {
            "field": name,
            "type": "quantitative",
            "scale": {"domain": [0, 1], "nice": False},
            "axis": {"title": None, "tickCount": 5},
        }
    point = {"type": "point", "filled": True, "aria": False, "clip": True}
    return _chart(
        {
            "datasets": {"draws": [], "cloud": []},
            "layer": [
                {
                    "data": {"name": "draws"},
                    "mark": point | {"color": "#999999", "size": 12, "opacity": 0.45},
                    "encoding": axes,
                },
                {
                    "data": {"name": "cloud"},
                    "mark": point | {"color": SERIES[0], "size": 16, "opacity": 0.8},
                    "encoding": axes,
                },
            ],
        }
    )


def _chart(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": SCHEMA,
        "width": "container",
        "autosize": {"type": "fit", "contains": "padding"},
    } | body
