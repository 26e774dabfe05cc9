"""Shared cases: a small spec, and the command line run in this process."""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import nfexp as package
from nfexp.cli import main
from nfexp.report import figures
from nfexp.sweep import dry_run
from tests.helpers.sabotage import NO_REPORT, site
from tests.helpers.specs import small_spec

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_spec():
    return small_spec


@pytest.fixture(autouse=True)
def machine_of_known_speed(request, monkeypatch):
    """Let dry runs take this machine for that of the prices: measuring it trains for seconds.

    Tests with the mark `measured` measure it.
    """
    if request.node.get_closest_marker("measured") is None:
        whole = dry_run.measured_pace
        monkeypatch.setattr(
            dry_run, "measured_pace", lambda specs, stacks, measure: whole(specs, stacks, of_the_prices)
        )


def of_the_prices(spec, members):
    """In the place of a measurement: the work of a second that takes a second."""
    return 1.0


def no_pictures(*arguments, **keywords):
    """In the place of `figures.draw_all`: draws nothing."""
    return {}


@pytest.fixture
def nfexp(request, tmp_path, monkeypatch, capsys):
    """Call the command line in an empty folder; gives (exit code, stdout, stderr).

    Reports are made without pictures, but for tests with the mark `pictures`: drawing takes longer than all the rest.
    """
    monkeypatch.chdir(tmp_path)
    with_pictures = request.node.get_closest_marker("pictures") is not None

    def call(*arguments: str, entry=main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nfexp", *arguments])
        if not with_pictures:
            monkeypatch.setattr(figures, "draw_all", no_pictures)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        code = 0
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            entry()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            logging.root.manager.disable = 0
        out = capsys.readouterr()
        return int(code), out.out, out.err

    return call


SMALL = (
    "data.n_samples=200", "data.n_val=100", "data.n_test=200", "train.steps=20", "train.batch_size=32",
    "train.warmup=2", "train.n_evals=13", "flow.hidden_width=8", "device=cpu",
    # Of what the default recipe has besides, nothing that only costs a test time, or adds a layer
    "flow.tail=none", "flow.base=normal", "train.optimizer=adam", "train.noise=0", "train.noise_end=0",
)  # fmt: skip


@pytest.fixture
def small_args():
    return SMALL


class Sweep(subprocess.Popen):
    """A sweep in a process (and a process group) of its own, with its folder `s`; `path` holds its `site`."""

    def __init__(self, cwd, *arguments, path, limits=""):
        home = os.pathsep.join([str(path), str(Path(package.__file__).parents[1])])
        given = {a.split("=")[0] for a in arguments}
        small = [a for a in SMALL if a.split("=")[0] not in given]
        command = [sys.executable, "-m", "nfexp", "-m", *small, "record=none", "hydra.sweep.dir=s", *arguments]
        shell = ["sh", "-c", f'{limits} exec "$@"', "sh", *command]
        environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"PYTHONPATH": home}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        super().__init__(shell, cwd=cwd, env=environment, **pipes)
        self.folder = Path(cwd) / "s"

    def finished(self):
        return sorted(self.folder.glob("*/result.json"))

    def wait_for(self, what, seconds=120):
        """Wait until `what()` is true; it is asked once a look, for what was true may pass."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.poll() is None, "the sweep ended first"
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def family(self):
        """Process ids of its descendants."""
        found, pending = [], [self.pid]
        while pending:
            parent = pending.pop()
            with suppress(OSError):  # what ends while it is looked at has no children
                for listed in Path(f"/proc/{parent}/task").glob("*/children"):
                    pending += [int(child) for child in listed.read_text().split()]
            found.append(parent)
        return found[1:]

    def workers(self):
        """Those of its descendants that train: forked from the one child that has torch loaded."""
        children = [child for child in self.family() if parent_of(child) == self.pid]
        return [pid for pid in self.family() if parent_of(pid) in children]


def parent_of(pid):
    """Process id of the parent; None once the process has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


@pytest.fixture
def sweep(tmp_path, tmp_path_factory):
    """Start a sweep of small runs as its users do; what is left of it is ended with the test.

    `changes` is code by module, as `site` takes it. Without `report` none is made: it is most of a small sweep's time.
    """
    started = []

    def start(*arguments, cwd=tmp_path, changes=None, report=False, **options):
        changes = (changes or {}) | ({} if report else NO_REPORT)
        path = site(tmp_path_factory.mktemp("site"), changes)
        started.append(Sweep(cwd, *arguments, path=path, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)
