"""Runs that go wrong in a real process."""

PATCHED = """
import os, signal
from nfexp import run
whole = run.run_stack
def run_stack(specs, **options):
    if any(s.seed == 1 for s in specs):
        {}
    return whole(specs, **options)
run.run_stack = run_stack
"""


def patched(folder, what):
    """A folder that makes every Python whose path it is on do `what` when it trains seed 1."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PATCHED.format(what))
    return folder
