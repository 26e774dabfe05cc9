"""A further process that draws: ``python -m nfexp.report.figures.pen`` reads its share of a report from its parent."""

from __future__ import annotations

import pickle
import sys

from nfexp.report.figures import draw

if __name__ == "__main__":
    folder, tasks = pickle.load(sys.stdin.buffer)  # from the parent's own unnamed file, never from a run directory
    draw(folder, tasks)
