"""Every command says what it is, which version, and in one line what is wrong with its arguments."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nfexp import entries, usages

COMMANDS = {
    "nfexp-resume": entries.resume,
    "nfexp-report": entries.report,
    "nfexp-plot": entries.plot,
    "nfexp-baselines": entries.baselines,
    "nfexp-export": entries.export,
    "nfexp-doctor": entries.doctor,
}


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch, capsys):
    """Call a command; gives its name, and for some words exit code, output and errors."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", [request.param, *words])
        try:
            code = COMMANDS[request.param]() or 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return request.param, call


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_has_purpose_arguments_and_two_examples(command, word):
    name, call = command
    code, out, err = call(word)
    takes = "\n" if name == "nfexp-doctor" else " DIR"
    assert (code, err) == (0, "") and out.startswith(f"usage: {name}{takes}")
    assert out.count(f"\n  {name} ") == 2 and "\n  --version " in out
    assert max(map(len, out.splitlines()[1:])) <= 120


def test_only_what_can_be_left_out_is_in_brackets():
    assert usages.EXPORT.line == "nfexp-export DIR… to=tensorboard|mlflow [out=PATH]"


def test_version(command):
    _, call = command
    code, out, err = call("--version")
    assert (code, err) == (0, "") and out.startswith(f"nfexp {importlib.metadata.version('nfexp')}")


@pytest.mark.parametrize("words", [[], ["--nonsense"], ["nowhere"]], ids=["nothing", "an option", "an absent folder"])
def test_what_is_wrong_is_one_line_that_begins_with_the_command(command, words, tmp_path, monkeypatch):
    name, call = command
    if name == "nfexp-doctor" and not words:
        pytest.skip("it takes no arguments")
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert (code, out) == (1, "") and err.startswith(f"{name}: ") and err.count("\n") == 1
    assert "expected " in err and "; got " in err
    assert not [*tmp_path.iterdir()]


def test_nfexp_itself(nfexp):
    code, out, _ = nfexp("--version")
    assert code == 0 and out.startswith(f"nfexp {importlib.metadata.version('nfexp')}")
    code, out, err = nfexp("--help")
    assert code == 0 and not err and "usage: nfexp [-m]" in out
    assert "flow: blog, classic, image, paper, realnvp, tuned" in out
    assert sum(line.startswith("  nfexp ") for line in out.splitlines()) == 6


SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
INTERRUPTED = """
import os, signal, sys
from nfexp import entries

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "nfexp.surroundings":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_during_imports_is_quiet(script):
    module, _, function = SCRIPTS[script].partition(":")
    assert module == entries.__name__
    code = f"{INTERRUPTED}sys.exit(entries.{function}())"
    ended = subprocess.run([sys.executable, "-c", code, "nowhere"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("word", ["--help", "--version"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_version_import_neither_torch_nor_pandas(script, word):
    function = SCRIPTS[script].partition(":")[2]
    code = f"""
import sys
from nfexp import entries
try:
    entries.{function}()
except SystemExit as stop:
    assert not stop.code
print(sorted({{"torch", "pandas"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "[]" and ended.returncode == 0, ended.stderr
