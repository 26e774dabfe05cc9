"""Commands as text: pasted into a shell, handed to Hydra, repeated from a file that may be from elsewhere."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nfexp import cli, commands, entries
from nfexp.spec import SpecError
from nfexp.sweep import conclusion

NAMES = (
    "Sweep (1)", "a b", "a  b", "it's", 'say "x"', "a=b", "redo=failed", "a,b", "{a}", "[a]", "a:b", "$HOME", "${x}",
    "\\${x}", "a\\", "\\'", "~", "#1", "50%", "a&b;c", "*", "???", "-m", "--help", "null", "true", "1e3", "Größe",
    "数据", " a ", "a\tb", "a\nb", "!x", "`id`",
)  # fmt: skip
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0/")
TEXTS = st.text(LETTERS, min_size=1) | st.text("\\'\"${}()[],=: ?-~a.", min_size=1)


def all_names(test):
    for name in NAMES:
        test = example(name)(test)
    return settings(max_examples=200, deadline=None, database=None)(given(TEXTS)(test))


@all_names
def test_a_path_comes_back_from_hydra_as_it_was(name):
    word = commands.folder_word(name)
    override = OverridesParser.create().parse_override(f"hydra.sweep.dir={commands.hydra_text(word)}")
    assert not override.is_sweep_override()
    assert OmegaConf.create({"dir": override.value()}).dir == word and Path(word) == Path(name)


@all_names
def test_a_path_comes_back_from_the_shell_as_it_was(name):
    command, word = shlex.split(commands.folder_command("nfexp-resume", name))
    assert command == "nfexp-resume" and Path(word) == Path(name) and not word.startswith("-")


def test_a_shell_reads_every_name_as_it_was():
    lines = [commands.folder_command("printf", name).replace("printf", r"printf %s\\0", 1) for name in NAMES]
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [commands.folder_word(name) for name in NAMES]


def test_behind_two_dashes_no_word_is_a_flag():
    line = commands.command_line(["--config-dir=mine", "--", "-dash", "redo=failed"])
    assert line.flags == ["--config-dir=mine"]
    assert line.overrides == ["-dash", "redo=failed"]


PASSES = (
    "seed=0,1", "~data", "++train.lr=1e-3", "experiment=ablate_mask", "+data.text=x", "seed=${oc.env:SEED}", "name=x",
    'data.text="a..b"', "data.text=_target_", "data=moons,circles", "hydra.verbose=true", "hydra.verbose=[a,b]",
    "hydra.job.chdir=true", "++hydra.job.chdir=true", "hydra.output_subdir=null", "hydra.output_subdir=.meta",
    "hydra.output_subdir=a/b", "hydra.job.name=mine", "hydra.job.name='a b'",
    "hydra.sweep.subdir=n${flow.n_flows}/${seed}",
    "hydra.sweep.subdir=a..b", "hydra.job.config.override_dirname.kv_sep=-", "hydra/job_logging=none",
    "hydra/hydra_logging=disabled", "hydra/launcher=basic", "hydra/sweeper=grids", "hydra.launcher.workers=2",
    "hydra.launcher.slurm.time=60", "hydra.launcher.slurm.extra={qos: x}", "hydra.launcher.n_jobs=2",
    "+hydra.sweeper.grids.mine={seed:[1,2]}", 'hydra.sweeper.params={data.text: "a..b"}',
)  # fmt: skip
NEEDS_A_WORD = (
    "--config-dir=x", "--config-name=x", "--config-path=x", "hydra.searchpath=[file:///x]", "experiment=../../x",
    "experiment=[../x]", "experiment=.${oc.decode:.}/x", "data/sub=../x", "data@hydra=x", "hydra={}", "+hydra@x=y",
    "+hydra.callbacks.x={_target_: a.B}", "hydra.launcher._target_=os.system", "hydra.launcher={_target_: os.system}",
    "hydra.launcher.slurm={a: {_target_: b}}", "hydra.launcher.slurm=${oc.create:'_ta${x}get_: b'}",
    "hydra.launcher.setup=[id]", "hydra.launcher.submitit_folder=/x", "hydra.sweeper._target_=x", "hydra/sweeper=basic",
    "hydra.sweeper.grids={a: {_target_: b}}", "hydra.job_logging.handlers.x={class: a.B}", "hydra/job_logging=../x",
    "hydra.hydra_logging.root.level=DEBUG", "hydra.job.env_set.LD_PRELOAD=x", "hydra.output_subdir=../x",
    "hydra.output_subdir=/x", "hydra.output_subdir=${oc.env:HOME}", "hydra.output_subdir='..'",
    "hydra.job.name=../../x",
    "hydra.job.name=a/../../x", "hydra.job.name=${x}", "hydra.job.name=C:x", "hydra.sweep.subdir=/x",
    "hydra.sweep.subdir=..",
    "hydra.sweep.subdir='../x'", "hydra.sweep.subdir=a,../b", "hydra.sweep.subdir=[", "hydra.sweep.dir=/x",
    "hydra.run.dir=/x", "hydra.runtime.output_dir=/x", "", "=x", "$x=1",
)  # fmt: skip


@pytest.mark.parametrize("argument", PASSES)
def test_what_names_no_code_and_no_place_is_repeated(argument):
    assert commands.harmless(argument)
    assert argument in commands.resumed("s", ["-m", argument], [], cli.NEW_ON_RESUME)


@pytest.mark.parametrize("argument", NEEDS_A_WORD)
def test_what_could_is_not(argument):
    assert not commands.harmless(argument)


@pytest.mark.parametrize(
    "argument", [a for a in NEEDS_A_WORD if "=" in a and not a.startswith(("=", "hydra.sweep.dir"))]
)
def test_the_refusal_says_what_to_type_and_that_works(argument):
    stored = ["seed=0,1", "-m", argument]
    with pytest.raises(SpecError, match="which can name code or another place") as refused:
        commands.resumed("Sweep (1)", stored, ["redo=failed"], cli.NEW_ON_RESUME)
    command, folder, *words = shlex.split(str(refused.value).partition("type: ")[2])
    assert (command, folder) == ("nfexp-resume", "Sweep (1)")
    line = commands.resumed(folder, stored, words, cli.NEW_ON_RESUME)
    assert set(line) == {*words, "seed=0,1", "--multirun", "hydra.sweep.dir='Sweep (1)'", "hydra.sweeper.resume=true"}


SPELLINGS = {
    "two words": ["-m", "--config-dir", "X", "seed=0,1"],
    "one word": ["seed=0,1", "--config-dir=X", "-m"],
    "short": ["-cd", "X", "--multirun", "seed=0,1"],
    "between": ["seed=0", "-cd=X", "train.steps=3", "-m"],
}


@pytest.mark.parametrize("stored", SPELLINGS.values(), ids=SPELLINGS)
def test_the_folder_of_a_configuration_may_move(stored, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nfexp", *stored, "redo=both", "++hydra.sweep.dir=s"])
    assert commands.resume_command("s") == "nfexp-resume s --config-dir=X"
    line = commands.resumed("s", stored, ["--config-dir=Y"], cli.NEW_ON_RESUME)
    assert line[:2] == ["--config-dir=Y", "--multirun"] and not any("X" in word for word in line)


def test_what_would_change_the_runs_is_refused():
    for word in ("train.steps=9", "--config-dir=X", "hydra.job.name=x"):
        with pytest.raises(SpecError, match="got what would change the runs"):
            commands.resumed("s", ["-m", "seed=0,1"], [word], cli.NEW_ON_RESUME)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["s", "--help"]])
def test_help(nfexp, words):
    code, out, err = nfexp(*words, entry=entries.resume)
    assert code == 0 and not err and out.startswith("usage: nfexp-resume DIR") and out.count("\n  nfexp-resume ") == 2


TINY = ("train.steps=2", "train.warmup=0", "train.n_evals=1", "flow.n_flows=1", "flow.hidden_width=8", "record=none",
        "data.n_samples=50", "data.n_val=50", "data.n_test=50")  # fmt: skip
ODD = "it's (1), ${x} = ü\\"
OWN = "# @package _global_\nname: own\ntrain:\n  lr: 0.003\n"


def resumes(nfexp, monkeypatch, *arguments, folder, more=()):
    """Train two runs, lose one, go on with the folder; gives the exit code, the message and how many there are."""
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: None)
    place = f"hydra.sweep.dir={commands.hydra_text(folder)}"
    assert nfexp("-m", *arguments, *TINY, "seed=0,1", place)[0] == 0
    next(Path(folder).rglob("result.json")).unlink()
    code, _, err = nfexp(folder, *more, entry=cli.resume)
    return code, err, len([*Path(folder).rglob("result.json")])


def test_a_sweep_with_an_odd_name_and_all_that_is_harmless(nfexp, monkeypatch):
    harmless = ("hydra.job.chdir=true", "hydra.verbose=true", "hydra.output_subdir=meta", "hydra.job.name=mine",
                "hydra.sweep.subdir='r${seed}'", "hydra/job_logging=none", "data=text", 'data.text="a..b"')  # fmt: skip
    code, err, n = resumes(nfexp, monkeypatch, *harmless, folder=ODD)
    assert (code, n) == (0, 2), err


def test_an_experiment_in_a_folder_of_its_own(nfexp, monkeypatch, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/own.yaml").write_text(OWN)
    own = ("--config-dir=mine", "experiment=own")
    code, err, n = resumes(nfexp, monkeypatch, *own, folder="a=b")
    line = re.search("type: nfexp-resume (.*)", err)[1]
    assert (code, n, line) == (1, 1, "a=b --config-dir=mine")
    code, _, err = nfexp(*shlex.split(line), entry=cli.resume)
    assert code == 0 and len([*Path("a=b").rglob("result.json")]) == 2, err


HOSTILE = {
    "code": "+hydra.job_logging.handlers.x={class: trap.Trap}",
    "a place": "hydra.sweep.subdir=/evil",
    "a place from outside": "hydra.sweep.subdir=${oc.env:EVIL}",
}


@pytest.mark.parametrize("override", HOSTILE.values(), ids=HOSTILE)
def test_jobs_from_elsewhere_name_neither_code_nor_a_place(nfexp, monkeypatch, tmp_path, override):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    job = {"job": "0000", "run_id": "x", "data.name": "moons", "seed": 0, "config": {}, "overrides": [override]}
    plan = {"schema_version": 1, "name": "adhoc", "arguments": ["-m"], "centres": {"moons": {}}, "jobs": [job]}
    Path("s").mkdir()
    Path("s/sweep.json").write_text(json.dumps(plan))
    code, _, err = nfexp("s", "mixed=true", entry=cli.resume)
    told = r"s/sweep\.json: expected jobs with overrides .*|hydra\.sweep\.subdir: expected a folder below .*"
    assert code == 1 and re.fullmatch(rf"nfexp: ({told})\n", err), err
    assert {p.name for p in tmp_path.rglob("*")} <= {"s", "sweep.json", ".lock"}
