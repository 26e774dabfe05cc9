"""What surrounds a command does not matter: the working folder, threads, streams, settings of other programs."""

import errno
import io
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nfexp import cli, surroundings
from nfexp.analysis.table import cannot_write
from nfexp.files import trouble
from nfexp.record import git_commit
from nfexp.sweep.planning import cores, threads_each
from nfexp.sweep.pool import Pool

HOME = str(Path(cli.__file__).parents[1])
SHADOWS = ("random", "torch", "types", "numpy", "socket", "pickle", "logging", "json", "nfexp")
DEEP = "d" * 76


def start(code, cwd, **environment):
    """Run code as a console command is run: without the working folder on the path."""
    without = {k: v for k, v in os.environ.items() if k not in (*surroundings.THREADS, surroundings.OWN_THREADS)}
    command = [sys.executable, "-P", "-c", code]
    own = without | {"PYTHONPATH": HOME} | environment
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=120)


@pytest.fixture
def hostile(tmp_path):
    """A working folder full of modules that must not be run."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\nraise OSError\n")
    return tmp_path


WORKERS = """
import multiprocessing, os, sys
from nfexp.surroundings import command
from nfexp.sweep.pool import Pool

@command
def main():
    pool = Pool()
    assert pool.call(os.path.isfile, "random.py"), "in the same folder"
    spawned = multiprocessing.get_context("spawn").Process(target=os.getcwd)
    spawned.start()
    spawned.join()
    assert spawned.exitcode == 0
    pool.close()

if __name__ == "__main__":
    main()
"""


def test_no_worker_imports_from_the_working_folder(hostile):
    (hostile / DEEP).mkdir()
    ended = start(WORKERS, hostile, TMPDIR=str(hostile / DEEP))
    assert ended.returncode == 0, ended.stderr
    assert not (hostile / "RAN").exists(), (hostile / "RAN").read_text()


def test_a_module_run_from_its_folder_is_not_shadowed(hostile):
    for name in ("types", "nfexp"):  # Python itself reads the first before anything of nfexp; the second is asked for
        (hostile / f"{name}.py").unlink()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": HOME}
    command = [sys.executable, "-m", "nfexp", "data=moon"]
    # what the interpreter loads before it knows what to run cannot be kept from the folder
    for name in ("logging", "json", "pickle", "socket"):
        (hostile / f"{name}.py").unlink()
    ended = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, timeout=120)
    assert "data: expected one of banana" in ended.stderr and not (hostile / "RAN").exists()


PROBE = """
from nfexp import cli, surroundings

def probe(arguments):
    import torch
    raise ValueError(f"{torch.get_num_threads()} threads")

cli.run_alone = probe
cli.main()
"""
TWO = min(2, cores())  # some builds of torch take no more threads than there are cores
SAID = {"nonsense": ({"OMP_NUM_THREADS": "abc"}, 1), "two": ({"OMP_NUM_THREADS": "2"}, TWO)}


@pytest.mark.parametrize("said, threads", SAID.values(), ids=SAID)
def test_a_command_has_the_threads_its_user_says(tmp_path, said, threads):
    assert start(PROBE, tmp_path, **said).stderr.endswith(f"nfexp: {threads} threads\n")


def test_workers_have_the_threads_their_user_says(monkeypatch):
    for name in (*surroundings.THREADS, surroundings.OWN_THREADS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nfexp.sweep.planning.cores", lambda: 8)
    assert threads_each(4) == 2

    @surroundings.command
    def main():
        return os.environ["OMP_NUM_THREADS"], threads_each(4)

    assert main() == ("1", 2) and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    assert threads_each(4) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert threads_each(4) == 3


def test_importing_a_flow_leaves_its_users_process_alone(tmp_path):
    names = (*surroundings.THREADS, surroundings.OWN_THREADS, "PYTHONSAFEPATH", "MPLBACKEND", "PYTHONPATH")
    code = f"""import os, sys; before = [os.environ.get(k) for k in {names}], sys.path[:], sys.stdout
import nfexp.flows.stack, nfexp.record, nfexp.report, matplotlib
assert before == ([os.environ.get(k) for k in {names}], sys.path, sys.stdout)
assert matplotlib.rcParams["backend"] == "template" """
    ended = start(code, tmp_path, MPLBACKEND="template")
    assert ended.returncode == 0, ended.stderr


BACKENDS = {"a notebook's": "module://matplotlib_inline.backend_inline", "nonsense": "foo"}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_any_backend_will_do(tmp_path, backend):
    code = {"foo": "import nfexp.report"}.get(
        backend, "from nfexp.data import make_target; make_target('text', noise=0.1, text='A')"
    )
    ended = start(code, tmp_path, MPLBACKEND=backend)
    assert ended.returncode == 0, ended.stderr


def test_a_socket_has_room(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / DEEP))
    assert len(surroundings.socket_folder()) <= surroundings.LONGEST_SOCKET_FOLDER
    monkeypatch.setattr(surroundings.os, "access", lambda *_: False)
    assert surroundings.socket_folder() is None
    pool = Pool()
    assert pool.context.get_start_method() == "spawn", "which needs none"


WRITES = """
import os, sys
from nfexp.surroundings import command

@command
def main():
    for i in range(50_000):
        print("line", i)
    print("end", file=sys.stderr)

main()
"""


def test_a_reader_that_leaves_ends_nothing(tmp_path):
    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    shell = f'{sys.executable} {script} 2>err | head -1; echo "${{PIPESTATUS[0]}}" >code'
    told = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=os.environ | {"PYTHONPATH": HOME},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert told.stdout == "line 0\n" and not told.stderr
    assert (tmp_path / "err").read_text() == "end\n" and (tmp_path / "code").read_text() == "0\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_fails_is_said_at_the_end(tmp_path):
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", WRITES], env=os.environ | {"PYTHONPATH": HOME}, stdout=full,
                               stderr=subprocess.PIPE, text=True, timeout=60)  # fmt: skip
    assert ended.stderr == "end\nstandard output: expected one that can be written; got No space left on device\n"
    assert ended.returncode == 1


def test_streams_of_ascii_take_every_character(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    surroundings.command(lambda: print("KL −0.1 ± 0.2 \udce9"))()
    sys.stdout.flush()
    assert raw.getvalue() == b"KL \\u22120.1 \\xb1 0.2 \\udce9\n"


def test_logs_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    handler = logging.FileHandler(tmp_path / "nfexp.log", encoding="ascii")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    surroundings.settle_logs()
    logging.getLogger("nfexp.test").warning("KL 0.1 ± 0.2")
    handler.close()
    assert (tmp_path / "nfexp.log").read_text(encoding="utf-8") == "KL 0.1 ± 0.2\n"


@pytest.mark.parametrize("main", ["cli.main", "cli.resume", "report.main", "report.figures.main", "baselines.main"])
def test_every_command_is_settled(main):
    module, _, name = main.rpartition(".")
    found = getattr(__import__(f"nfexp.{module}", fromlist=[name]), name)
    assert found.__wrapped__ and found.__code__ is surroundings.command(print).__code__


def test_another_repository_is_not_ours(tmp_path, monkeypatch):
    git_commit.cache_clear()
    before = git_commit()
    git_commit.cache_clear()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert git_commit() == before


NO = "expected a folder nfexp can write to; got"
ERRORS = {
    "no leave": (PermissionError(errno.EACCES, "denied", "/proc/x"), f"/proc/x: {NO} denied"),
    "a full disk": (OSError(errno.ENOSPC, "full"), f"output folder: {NO} full"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "s/0"), f"s/0: {NO} Read-only file system"),
    "a secret file": (
        PermissionError(errno.EACCES, "no", __file__),
        f"{__file__}: expected a file that nfexp",
    ),
    "a closed pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), "connection: expected a process that answers"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "reset"), "connection: expected a process that answers"),
    "nobody there": (ConnectionRefusedError(errno.ECONNREFUSED, "no"), "connection: expected a process that answers"),
    "a silence": (TimeoutError("timed out"), "connection: expected a process that answers; got timed out"),
    "many files": (OSError(errno.EMFILE, "Too many open files", "s/x"), "open files: expected leave to open more"),
    "no memory": (OSError(errno.ENOMEM, "Cannot allocate"), "memory: expected more of it"),
    "no forks": (BlockingIOError(errno.EAGAIN, "Resource …"), "processes: expected leave to start more of them"),
    "a long name": (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: expected a shorter name"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "x: expected a file; got Is a directory"),
    "a bad disk": (OSError(errno.EIO, "Input/output error", "x"), "x: expected a disk that works"),
    "no number": (OSError("AF_UNIX path too long"), "system: expected what nfexp asked of it; got AF_UNIX path"),
}


@pytest.mark.parametrize("error, message", ERRORS.values(), ids=ERRORS)
def test_an_error_of_the_system_is_told_as_what_it_is(error, message):
    assert cli.explain(error).startswith(message)
    assert len(trouble(error, "")) == 3


def test_a_report_tells_the_same():
    full = cannot_write("s", OSError(errno.ENOSPC, "No space left on device", "s/figures/.x.png"))
    assert str(full) == "s: expected a folder that can be written; got No space left on device"
    assert str(cannot_write("s", ERRORS["many files"][0])).startswith("open files: expected leave")
