"""The charts of the explorer, declared in Vega-Lite: marks and scales; the page fills in the data."""

from __future__ import annotations

from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
# Colours that people with any colour vision can tell apart (Okabe and Ito 2008)
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F")


def ablation() -> dict[str, Any]:
    """Means with their intervals and the single runs along one axis.

    Data `cells`: x, order, series, mean, low, high, n, troubles, centre, decided, number. Data
    `runs`: x, order, series, y, run, job, seed, status, side. All of them are filled in by the page.
    """
    x = {
        "field": "x",
        "type": "ordinal",
        "sort": {"field": "order"},
        "axis": {"title": None, "labelAngle": 0, "labelLimit": 110, "labelOverlap": False},
    }
    beside = {"field": "series", "type": "nominal", "sort": None}
    colour = {
        "field": "series",
        "type": "nominal",
        "sort": None,
        "scale": {"range": SERIES},
        "legend": {
            "orient": "top",
            "title": None,
            "columns": 4,
            "labelLimit": 220,
            "symbolOpacity": 1,
            "symbolType": "diamond",
        },
    }
    place = {"x": x, "xOffset": beside, "color": colour}
    mean = _y("mean")
    of_cell = [
        {"field": "x", "type": "nominal", "title": "value"},
        {"field": "series", "type": "nominal", "title": "series"},
        {"field": "said", "type": "nominal", "title": "mean [95% interval]"},
        {"field": "n", "type": "quantitative", "title": "completed runs"},
        {"field": "troubles", "type": "nominal", "title": "not completed"},
    ]
    of_run = [
        {"field": "job", "type": "nominal", "title": "run"},
        {"field": "x", "type": "nominal", "title": "value"},
        {"field": "series", "type": "nominal", "title": "series"},
        {"field": "seed", "type": "nominal", "title": "seed"},
        {"field": "y", "type": "quantitative", "title": "measured", "format": ".4~g"},
    ]
    halo = {"type": "point", "size": 420, "filled": True, "opacity": 0.35, "aria": False}
    return _chart(
        {
            "datasets": {"cells": [], "runs": []},
            "layer": [
                {
                    "data": {"name": "cells"},
                    "transform": [{"filter": "datum.decided"}],
                    "mark": halo | {"color": "#F0C000", "shape": "square"},
                    "encoding": {"x": x, "xOffset": beside, "y": mean},
                },
                {
                    "data": {"name": "cells"},
                    "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
                    "encoding": place | {"y": _y("low"), "y2": {"field": "high"}},
                },
                {
                    "data": {"name": "cells"},
                    "mark": {"type": "point", "filled": True, "shape": "diamond", "size": 110},
                    "encoding": place
                    | {
                        "y": mean,
                        "stroke": {
                            "condition": {"test": "datum.centre", "value": "#888888"},
                            "value": None,
                        },
                        "strokeWidth": {"value": 3},
                        "tooltip": of_cell,
                        "description": {"field": "description"},
                    },
                },
                {
                    "data": {"name": "runs"},
                    "mark": {"type": "point", "filled": True, "size": 34, "cursor": "pointer"},
                    "encoding": place
                    | {
                        "y": _y("y"),
                        "opacity": {"value": 0.5},
                        "shape": {
                            "field": "side",
                            "type": "nominal",
                            "scale": {
                                "domain": ["", "left", "right"],
                                "range": ["circle", "triangle-left", "triangle-right"],
                            },
                            "legend": None,
                        },
                        "size": {
                            "condition": {"test": "datum.side != ''", "value": 220},
                            "value": 34,
                        },
                        "tooltip": of_run,
                        "description": {"field": "description"},
                    },
                },
            ],
        }
    )


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
    return {"$schema": SCHEMA, "width": "container", "autosize": {"type": "fit", "contains": "padding"}} | body
