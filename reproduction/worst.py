"""The test points on which a run loses most: a mean can be theirs alone."""

from __future__ import annotations

import os

import pandas as pd
import torch

from benchmarks.tables import columns
from nfexp.data import load
from nfexp.record import load_flow

TOP = 20


def worst(run: str | os.PathLike[str]) -> str:
    """The `TOP` test points with the greatest log p - log q of a finished run, and the mean KL without them.

    A table in Markdown: the point in data units, its log p, what it loses in nats, its greatest |z| at the base, the
    KL over all points that lose less.
    """
    flow = load_flow(run)
    dataset = load(flow.spec)
    x, log_p = dataset.test, dataset.true_log_prob()
    points = x.to(flow.stack.theta)
    with torch.no_grad():
        lost = log_p - flow.log_prob(points).double()
        far = flow.inverse(points).abs().amax(1)
    lost, order = lost.sort(descending=True)
    rest = (lost.sum() - lost.cumsum(0)) / (len(lost) - torch.arange(1, len(lost) + 1))
    top = order[:TOP]
    table = pd.DataFrame({
        "x": x[top, 0], "y": x[top, 1], "log p": log_p[top], "lost": lost[:TOP], "|z|": far[top], "KL": rest[:TOP],
    })  # fmt: skip
    title = f"{flow.spec.data.name}, seed {flow.spec.seed}: mean KL {lost.mean():.3f} over {len(lost)} points\n\n"
    return title + columns(table, {c: c for c in table} | {"KL": "KL without it and those above"})
