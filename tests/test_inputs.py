"""Every kind of bad input: one line with what is wrong, what was expected and what came; nothing trained or written.

What only the sweeper's grids can get wrong is in `test_grids.py`, values of the configuration alone in `test_spec.py`,
records and plans from elsewhere in `test_trust.py` and `test_resume.py`.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from nfexp import cli, report
from nfexp.record.plan import Plan
from nfexp.report import figures
from tests.helpers.fake_sweep import write_sweep

COMMANDS = {
    "nfexp": cli.main,
    "nfexp-resume": cli.resume,
    "nfexp-report": report.main,
    "nfexp-plot": figures.main,
}

CONFIGURATION = {
    "unknown key": (
        "flow.n_layers=3",
        r"flow.n_layers: expected a key of the configuration .*; got an unknown one \(near: 'flow.n_flows'\)",
    ),
    "unknown key, added": ("+flow.n_layers=3", "flow.n_layers: expected one of the keys n_flows, .*; got .*"),
    "unknown key at the top": (
        "+n_flows=3",
        r"n_flows: expected one of the keys name, data, .*; got an unknown key \(near: 'flow'\)",
    ),
    "unknown key in a sweep": ("-m flow.layers=1,2", "flow.layers: expected a key of .*; got an unknown one .*"),
    "a key removed": ("~flow.n_flows", "flow.n_flows: expected a value; got nothing"),
    "a group removed": ("~data", "data.name: expected a value; got nothing"),
    "a group that is a value": ("flow=3", "Config group override must be a string or a list. Got int"),
    "unknown group": ("flows=realnvp", "flows: expected .*; got an unknown one .near: 'flow'."),
    "misspelt at the top": ("seeed=2", "seeed: expected a key of .*; got an unknown one .near: 'seed'."),
    "misspelt in a sweep": ("-m seeed=1,2", "seeed: expected a key of .*; got an unknown one .near: 'seed'."),
    "a misspelt control": ("-m dryrun=true", "dryrun: expected a key of .*; got an unknown one .near: 'dry_run'."),
    "misspelt for Hydra": ("hydra.swep.dir=x", "hydra.swep.dir: expected .* .near: 'hydra.sweep.dir'."),
    "misspelt for Hydra in a sweep": ("-m hydra.swep.dir=x", "hydra.swep.dir: .* .near: 'hydra.sweep.dir'."),
    "misspelt for the launcher": ("-m hydra.launcher.worker=2", "hydra.*: .* .near: 'hydra.launcher.workers'."),
    "misspelt for the sweeper": ("-m hydra.sweeper.repeat=2", "hydra.*: .* .near: 'hydra.sweeper.repeats'."),
    "a misspelt group of Hydra": ("hydra/launchr=basic", "hydra/launchr: .* .near: 'hydra/launcher'."),
    "unknown target": ("data=moon", "data: expected one of banana, breast_cancer, .*; got 'moon' .near: 'moons'."),
    "unknown target in a sweep": ("-m data=moons,moon", "data: expected one of .*; got 'moon' .near: 'moons'."),
    "unknown experiment": ("-m experiment=nope", "experiment: expected one of ablate_activation, .*; got 'nope'"),
    "unknown training": ("train=slow", "train: expected one of blog, .*; got 'slow'"),
    "wrong type": ("flow.n_flows=many", "flow.n_flows: expected an integer >= 1 .*; got 'many'"),
    "decimal": ("flow.n_flows=2.5", "flow.n_flows: expected an integer >= 1 .*; got 2.5"),
    "null": ("train.lr=null", "train.lr: expected a number > 0 .*; got None"),
    "truth": ("seed=true", "seed: expected an integer >= 0 .*; got True"),
    "out of range": ("flow.n_flows=0", "flow.n_flows: expected an integer >= 1 .*; got 0"),
    "out of range, late in a sweep": ("-m flow.n_flows=1,2,0", "flow.n_flows: expected an integer >= 1 .*; got 0"),
    "negative seed": ("seed=-1", "seed: expected an integer >= 0 .*; got -1"),
    "seed too large": ("seed=9223372036854775808", "seed: expected an integer >= 0 .*; got 9223372036854775808"),
    "infinite rate": ("train.lr=inf", "train.lr: expected a number > 0 .*; got inf"),
    "no number": ("train.lr=nan", "train.lr: expected a number > 0 .*; got nan"),
    "unknown activation": ("flow.activation=bent", "flow.activation: expected one of relu, .*; got 'bent'"),
    "unknown mask": ("-m flow.mask=fixed,odd", "flow.mask: expected one of alternating, .*; got 'odd'"),
    "unknown device": ("device=tpu", "device: expected one of auto, cpu, cuda; got 'tpu'"),
    "unknown schedule": ("train.schedule=step", "train.schedule: expected one of .*; got 'step'"),
    "batch size": ("train.batch_size=all", "train.batch_size: expected an integer .* or 'full'; got 'all'"),
    "warm-up": ("train.steps=10 train.warmup=11", "train.warmup: expected at most train.steps = 10; got 11"),
    "too few samples": ("data.n_samples=1", "data.n_samples: expected an integer >= 2 .*; got 1"),
    "no noise": ("data.noise=0", "data.noise: expected a number > 0 .*; got 0"),
    "noise out of reach": ("data.noise=1e-9", "data.noise: expected at most .*; got a noise so small .*"),
    "text without letters": ("data=text data.text='\"  \"'", "data.text: expected .*; got '  '"),
    "a list": ("'flow.n_flows=[1,2]'", r"flow.n_flows: expected an integer .*; got .*\[1, 2\].*"),
    "a group in a value": ("'seed={a:1}'", "seed: expected an integer .*; got .*"),
    "name with a path": ("-m name=../../evil seed=0,1", "name: expected letters, .*; got '../../evil'"),
    "name with a tag": ("'name=\"<b>\"'", "name: expected letters, .*; got '<b>'"),
    "interpolation of nothing": ("'train.steps=${train.stepz}'", ".*train.stepz.*"),
    "unknown resolver": ("'seed=${dice:6}'", ".*dice.*"),
}  # fmt: skip
TABLES_OF_ONES_OWN = {
    "a table without a path": ("data=table", "data.path: expected the path of the table, .*; got None"),
    "a table that is not there": ("data=table data.path=no.csv", "data.path: expected .*; got no.csv, nothing there"),
    "a table that is not there, in a sweep": (
        "-m data=table data.path=points.csv,no.csv", "data.path: expected .*; got no.csv, nothing there",
    ),
    "a column of words": ("data=table data.path=words.csv", "data.path: expected columns of numbers .*; got 'red' .*"),
    "a column that is not there": (
        "data=table data.path=points.csv data.drop=heigth", "data.drop: expected .*; got 'heigth' .near: 'height'.",
    ),
    "a context that is not there": (
        "data=table data.path=points.csv data.context=[heigth]",
        "data.context: expected columns of points.csv: height, weight; got 'heigth' .near: 'height'.",
    ),
    "all columns given": (
        "data=table data.path=points.csv data.context=[0,1]", "data.context: expected some columns .*; got all of them",
    ),
    "a context of a target": ("data.context=x", "data.context: expected a key of the configuration .*"),
    "a context of a published table": ("data=power data.path=. data.context=0", "data.context: expected null here, .*"),
    "a constant column": ("-m data=table data.path=constant.csv seed=0,1", "data.columns: expected .*: height"),
    "a split of a target": ("data.split=3", "data.split: expected a key of the configuration .*; got an unknown one"),
    "noise on a table": ("data=wine data.noise=0.1", "data.noise: expected null for a table .*; got 0.1"),
    "published files that are not there": (
        "data=power data.path=.", "data.path: expected a folder with power/data.npy, from https.*; got '.'",
    ),
}  # fmt: skip
CONTROLS = {
    "a dry single run": ("dry_run=true", "dry_run: expected nfexp -m .*; got a single run"),
    "dry run of no sort": ("-m seed=0,1 dry_run=maybe", "dry_run: expected true or false; got 'maybe'"),
    "redo of no sort": ("-m redo=all", "redo: expected one of none, failed, diverged, both; got 'all'"),
    "mixed of no sort": ("-m mixed=1", "mixed: expected true or false; got 1"),
    "fail_fast of no sort": ("-m fail_fast=null", "fail_fast: expected true or false; got None"),
    "rounds of no sort": ("-m until=done", "until: expected decided, or null; got 'done'"),
    "rounds of one run": ("until=decided", "until: expected nfexp -m, .*; got a single run"),
    "max_seeds of no sort": ("-m max_seeds=1", "max_seeds: expected an integer >= 2; got 1"),
    "a margin below 0": ("-m until=decided margin=-0.1", "margin: expected a number > 0, in nats, or null; got -0.1"),
    "a margin alone": ("-m seed=0,1 margin=0.1", "margin: expected until=decided beside it; got 0.1"),
    "no time at all": ("-m until=decided time_budget=0", "time_budget: expected a number of minutes > 0, .*; got 0"),
    "two ways to go about it": ("-m fail_fast=true,false", "fail_fast: expected one value, .*; got .*"),
    "fail_fast elsewhere": (
        "-m fail_fast=true hydra/launcher=basic", "fail_fast: expected hydra/launcher=stack, .*; got another launcher",
    ),
    "max_stack": ("-m hydra.launcher.max_stack=0", "hydra.launcher.max_stack: expected an integer >= 1 .*; got 0"),
    "max_stack is no switch": (
        "-m hydra.launcher.max_stack=true", "hydra.launcher.max_stack: expected an integer >= 1 .*; got True",
    ),
    "workers": ("-m hydra.launcher.workers=-2", "hydra.launcher.workers: expected an integer >= 1 .*; got -2"),
    "half a worker": ("-m hydra.launcher.workers=0.5", "hydra.launcher.workers: expected an integer >= 1 .*; got 0.5"),
    "memory": ("-m hydra.launcher.memory=-1", "hydra.launcher.memory: expected a number of gigabytes .*; got -1"),
    "memory in words": ("-m hydra.launcher.memory=4GB", "hydra.launcher.memory: expected a number of .*; got '4GB'"),
    "unknown launcher key": ("-m hydra.launcher.stack=4", "hydra.launcher.stack: expected a key of .*; got an .*"),
    "unknown launcher": ("-m hydra/launcher=moon", "hydra/launcher: expected one of basic, .*; got 'moon'"),
    "unknown sweeper": ("-m hydra/sweeper=moon", "hydra/sweeper: expected one of basic, .*; got 'moon'"),
}  # fmt: skip
COMMAND_LINE = {
    "open bracket": ("'flow.n_flows=[1'", "flow.n_flows=.*: expected Hydra's override syntax; got .*"),
    "no value": ("flow.n_flows", "flow.n_flows: expected KEY=VALUE; got no '='"),
    "no key": ("=3", "=3: expected KEY=VALUE; got no key"),
    "a word after a flag": ("--hydra-help flows", "flows: expected KEY=VALUE; got no '='"),
    "a flag": ("--bogus", "--bogus: expected KEY=VALUE, or a flag that nfexp --hydra-help lists; got an unknown flag"),
    "a flag of a sweep": ("-m --bogus seed=1", "--bogus: expected KEY=VALUE, or a flag .*; got an unknown flag"),
    "a flag in the middle": ("seed=0,1 -m flow.n_flows=1", "flow.n_flows=1: expected all .*; got a flag between them"),
    "a flag without its value": ("--package", "--package/-p: expected a value, as nfexp --hydra-help says; got none"),
    "what --cfg shows": ("--cfg all_of_it", "--cfg/-c: expected one of job, hydra, all; got 'all_of_it'"),
    "sweep without -m": ("flow.n_flows=1,2", "flow.n_flows: expected one value, nfexp -m for .*; got 1,2"),
    "two experiments": ("-m experiment=ablate_mask,ablate_norm", "experiment: expected one value, .*; got .*"),
    "repeats without -m": ("hydra.sweeper.repeats=3", "hydra.sweeper.repeats: expected nfexp -m.*; got a single run"),
    "a zip without -m": ("'hydra.sweeper.zip={seed:[1,2]}'", "hydra.sweeper.zip: expected nfexp -m.*"),
    "a range without quotes": (
        "-m 'hydra.sweeper.zip={seed:range(3),flow.n_flows:range(3)}'",
        "hydra.sweeper.zip: expected quotes around range.*; got .*",
    ),
    "a list where grids have names": (
        "-m experiment=ablate_mask 'hydra.sweeper.grids=[{seed:[1,2]}]'",
        "hydra.sweeper.grids: expected '.hydra.sweeper.grids.NAME=.*', for these grids have names; got a list",
    ),
    "an experiment without -m": ("experiment=ablate_mask", "hydra.sweeper.grids: expected nfexp -m.*; got a .*"),
    "unknown configuration": ("--config-name nope", "configuration: expected a file .*; got 'nope'"),
    "resume of no sort": ("-m hydra.sweeper.resume=3", "hydra.sweeper.resume: expected true or false; got 3"),
}  # fmt: skip
FOLDERS = {
    "unwritable": ("hydra.run.dir=/proc/nfexp", "/proc/nfexp.*: expected a folder nfexp can write to; got .*"),
    "unwritable for a sweep": (
        "-m seed=0,1 hydra.sweep.dir=/proc/nfexp", "/proc/nfexp.*: expected a folder nfexp can write to; got .*",
    ),
    "a run where a run is": (
        "hydra.run.dir=run/000", "run/000: expected a new or empty folder; got one that holds result.json",
    ),
    "a file": ("hydra.run.dir=file", ".*file.*: expected a folder nfexp can write to; got .*"),
    "a file for a sweep": ("-m seed=0,1 hydra.sweep.dir=file", "file: expected a folder nfexp can .*; got File exists"),
    "below a file": ("-m seed=0,1 hydra.sweep.dir=file/s", "file/s: expected a folder nfexp can write to; got .*"),
    "a sweep where a run is": ("-m seed=0,1 hydra.sweep.dir=run/000", ".*: expected a new or empty folder, .*; got .*"),
    "a sweep where another is": ("-m seed=0,1 hydra.sweep.dir=planned", "planned: expected the runs of its .*; got .*"),
    "a sweep's plan is broken": ("-m seed=0,1 hydra.sweep.dir=broken", "broken/sweep.json: expected readable JSON; .*"),
    "a sweep's plan is a link": ("-m seed=0,1 hydra.sweep.dir=linked", "linked/sweep.json: .*; got a symbolic link"),
    "resume of nothing there": (
        "-m hydra.sweeper.resume=true hydra.sweep.dir=absent",
        "absent: expected the folder of an earlier sweep; got one without sweep.json",
    ),
}  # fmt: skip
RESUME = {
    "no folder": ("", "DIR: expected the folder of a sweep; got nothing"),
    "nothing there": ("absent", "DIR: expected the folder of a sweep; got 'absent'"),
    "no sweep there": ("empty", "DIR: expected the folder of a sweep; got 'empty'"),
    "a file": ("file", "DIR: expected the folder of a sweep; got 'file'"),
    "an option first": ("redo=failed", "DIR: expected the folder of a sweep; got 'redo=failed'"),
    "a broken plan": ("broken", "broken/sweep.json: expected readable JSON; got .*"),
    "a newer plan": ("newer", "newer/sweep.json: expected schema_version at most 1; got 99"),
    "a plan with code": ("code", "code/sweep.json: expected arguments that are safe to repeat; got .*_target_.*"),
    "redo of no sort": ("planned redo=all", "redo: expected one of none, failed, diverged, both; got 'all'"),
    "another configuration": ("planned train.steps=9", "train.steps=9: expected .*redo=….*; got what would change .*"),
    "an unknown launcher key": ("planned hydra.launcher.stack=4", "hydra.launcher.stack: expected a key of .*"),
    "no jobs": ("jobless", ".*: expected at least one run; got none.*"),
}
REPORT = {
    "no folder": ("", "nfexp-report: expected nfexp-report DIR… .*; got no directory"),
    "nothing there": ("absent", ".*absent: expected a directory; got nothing there"),
    "a file": ("file", ".*file: expected a directory; got a file"),
    "without runs": ("empty", ".*empty: expected a finished run .*; got none"),
    "a half-written run": ("half", ".*half: expected a finished run .*; got none"),
    "a newer schema": ("newer", ".*: expected schema_version at most 1; got 99"),
    "unknown option": ("run --fast", "nfexp-report: expected nfexp-report DIR… .*; got the option --fast"),
    "unknown key": ("run output=x", "nfexp-report: expected out=PATH or explorer=false; got output=x"),
    "nowhere to go": ("run out=file/x", "file/x: expected a folder that can be written; got Not a directory"),
}
PLOT = {
    "broken record": ("broken", ".*broken/.*json: expected readable JSON; got .*"),
    "unknown figure": ("run figures=maps", "figures: expected one of .*; got 'maps'"),
    "no value": ("run figures=", "nfexp-plot: expected figures=.* or out=PATH; got figures="),
    "two folders, one absent": ("run absent", ".*absent: expected a directory; got nothing there"),
}
OF_FOLDERS = {f"folder: {name}": case for name, case in FOLDERS.items()}
TABLES = {"nfexp": CONFIGURATION | TABLES_OF_ONES_OWN | CONTROLS | COMMAND_LINE | OF_FOLDERS,
          "nfexp-resume": RESUME, "nfexp-report": REPORT, "nfexp-plot": PLOT}  # fmt: skip
CASES = {f"{command}: {name}": (command, *case) for command, table in TABLES.items() for name, case in table.items()}


POINTS = "height,weight\n" + "".join(f"{i / 7},{i * i}\n" for i in range(30))


def lay_out():
    """Folders in which something is wrong, by name; `run` and `planned` are as they should be."""
    write_sweep("run", [({"seed": 0}, {}, "completed")])
    plan = {"schema_version": 1, "name": "x", "arguments": ["-m", "seed=3,4"]}
    centres, job = {"moons": {"seed": 3}}, {"job": "0000", "run_id": "x", "data.name": "moons", "seed": 3}
    plan |= {"centres": centres, "jobs": [job | {"overrides": ["seed=3"], "config": {}}]}
    texts = {
        "file": "", "newer/result.json": '{"schema_version": 99}', "newer/sweep.json": '{"schema_version": 99}',
        "broken/result.json": '{"schema_', "broken/sweep.json": "{", "planned/sweep.json": json.dumps(plan),
        "points.csv": POINTS, "words.csv": POINTS + "red,1\n", "constant.csv": "height" + "\n1" * 20,
        "half/0000/.result.json.x1y2z3ab": '{"schema_version": 1, "sta', "empty/.keep": "",
        "code/sweep.json": json.dumps(plan | {"arguments": ["-m", "hydra.launcher._target_=os.system"]}),
    }  # fmt: skip
    for name, text in texts.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("jobless").mkdir()
    Plan(arguments=["-m"]).write(Path("jobless"))
    Path("linked").mkdir()
    Path("linked/sweep.json").symlink_to(Path("planned/sweep.json").absolute())


def contents():
    """What lies there, by path; a folder that was looked into may keep its lock file, which is empty."""
    return {p: p.is_file() and p.read_bytes() for p in Path().rglob("*") if p.name != ".lock"}


@pytest.mark.parametrize(("command", "arguments", "message"), CASES.values(), ids=CASES)
def test_bad_input(nfexp, capsys, command, arguments, message):
    lay_out()
    before = contents()
    entry = COMMANDS[command]
    if command in ("nfexp", "nfexp-resume"):
        code, out, err = nfexp(*shlex.split(arguments), entry=entry)
        command = "nfexp(-resume)?"  # a sweep that is resumed is nfexp's
    else:
        code = entry(shlex.split(arguments))
        out, err = capsys.readouterr()
    assert code == 1 and not out
    assert re.fullmatch(f"({command}: )?{message}", err.removesuffix("\n")) and err.count("\n") == 1, err
    assert contents() == before


def test_another_sweeper_cannot_plan(nfexp):
    code, _, err = nfexp("-m", "seed=0,1", "dry_run=true", "hydra/sweeper=basic", "hydra.sweep.dir=s")
    assert code == 1 and "dry_run: expected the grids sweeper, which alone can plan; got another sweeper" in err
    assert not list(Path("s").rglob("result.json"))


def test_the_table_is_large_and_repeats_nothing():
    assert len(CASES) >= 60 and len({(command, arguments) for command, arguments, _ in CASES.values()}) == len(CASES)
