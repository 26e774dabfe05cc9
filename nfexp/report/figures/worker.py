"""A further process that draws.

``python -m nfexp.report.figures.worker`` reads its share of a report from its parent.
"""

from __future__ import annotations

import pickle
import sys

from nfexp.report.figures.writing import draw

if __name__ == "__main__":
    # from the parent's own unnamed file, never from a run directory: a pickle can run anything
    folder, drawings = pickle.load(sys.stdin.buffer)
    draw(folder, drawings)
