"""Processes in which something of nfexp is another: it goes wrong, or is left out because nobody looks at it."""

from pathlib import Path

# The code is run in a module once that is imported: a process that never imports it does not pay for it.
SITE = """
import importlib.util, sys

CODE = {!r}

class Changed:
    @staticmethod
    def find_spec(name, path, target=None):
        if name not in CODE:
            return None
        code = CODE.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            exec(code, vars(module))

        spec.loader.exec_module = load_and_change
        return spec

sys.meta_path.insert(0, Changed)
"""
SEED_ONE = """
import os, signal
whole = run_stack
def run_stack(specs, **options):
    if any(s.seed == 1 for s in specs):
        {}
    return whole(specs, **options)
"""
NO_REPORT = {"nfexp.sweep.conclusion": "report = lambda folder, explorer: None"}


def at_seed_one(what):
    """The change by which a process does `what` when it trains seed 1."""
    return {"nfexp.run": SEED_ONE.format(what)}


def site(folder, changes):
    """A folder that makes these changes, code by module, in every Python whose path it is on."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE.format(changes))
    return folder
