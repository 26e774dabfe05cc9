"""What a sweep consists of: unions, products, zips, exclusions and repeats, from the command line and from YAML."""

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hydra_plugins.nfexp.grids_sweeper import GridsSweeper
from nfexp import cli
from nfexp.arguments import quoted
from nfexp.commands import is_said_once
from nfexp.configuration import conf_dir
from nfexp.spec import SpecError, run_id
from nfexp.sweep import conclusion

KEYS = {"flow.n_flows": (1, 2, 6), "train.lr": (1, 1.0, 1e-2), "data": ("moons", "circles"), "seed": (0, 1, 3)}
START = {"flow.n_flows": 6, "train.lr": 1e-2, "data": "moons", "seed": 0}


@pytest.fixture(scope="module")
def sweeper_of():
    """Make the sweeper of a command line, and the arguments that are left for it."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())

    def make(*arguments):
        config = context.config_loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)
        sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=cli.job, config=config)
        return sweeper, list(config.hydra.overrides.task)

    return make


@pytest.fixture(scope="module")
def plain_sweeper(sweeper_of):
    return sweeper_of(*(f"{k}={v}" for k, v in START.items()))[0]


@pytest.fixture(scope="module")
def expanded(sweeper_of):
    """The specs of a command line's runs (duplicates included), and how many points were excluded."""

    def expand(*arguments):
        sweeper, rest = sweeper_of(*arguments)
        points, excluded = sweeper.command(rest).points()
        return [sweeper.composer.spec(point) for point in points], excluded

    return expand


GRIDS = {  # arguments → runs
    "nothing": ([], 1),
    "product": (["seed=0,1", "flow.n_flows=1,2,3"], 6),
    "union without duplicates": (["+hydra.sweeper.grids.a={seed:[0,1]}", "+hydra.sweeper.grids.b={seed:[1,2]}"], 3),
    "union at once": (["hydra.sweeper.grids=[{seed:[0,1]},{flow.n_flows:[1,2]}]"], 4),
    "union by name": (["hydra.sweeper.grids={a:{seed:[0,1]},b:[{seed:1},{seed:2}]}"], 3),
    "product in a grid": (["hydra.sweeper.grids=[{seed:[0,1],flow.n_flows:[1,2]}]"], 4),
    "zip": (["hydra.sweeper.zip={flow.n_flows:[1,2],flow.hidden_depth:[6,3]}"], 2),
    "zip times product": (["hydra.sweeper.zip={flow.n_flows:[1,2],flow.hidden_depth:[6,3]}", "seed=range(3)"], 6),
    "zip in a grid": (["+hydra.sweeper.grids.a={zip:{seed:[0,1],flow.n_flows:[1,2]}}"], 2),
    "zip of a grid times zip": (
        [
            "hydra.sweeper.zip={data:[moons,circles],data.noise:[0.1,0.2]}",
            "hydra.sweeper.grids=[{zip:{seed:[0,1],flow.n_flows:[1,2]}}]",
        ],
        4,
    ),
    "zip of texts": (["hydra.sweeper.zip={seed:'range(2)',flow.n_flows:'1,2'}"], 2),
    "zip restricted": (["hydra.sweeper.zip={flow.n_flows:[1,2],flow.hidden_depth:[6,3]}", "flow.n_flows=2,4"], 1),
    "params multiply": (["+hydra.sweeper.grids.a={seed:[0,1]}", "+hydra.sweeper.params.data=[moons,circles]"], 4),
    "params at once": (["hydra.sweeper.params={data:[moons,circles],seed:'range(3)'}"], 6),
    "the command line restricts": (["+hydra.sweeper.grids.a={seed:[0,1,2]}", "seed=1,2,9"], 2),
    "the command line replaces params": (["hydra.sweeper.params={seed:[0,1,2]}", "seed=8,9"], 2),
    "one value in two spellings": (["train.lr=1e-3,0.001"], 1),
    "a default spelled out": (["hydra.sweeper.grids=[{flow.n_flows:[6,7]},{seed:0}]"], 2),
    "exclude": (
        ["flow.n_flows=1,12", "data=moons,spiral4", "hydra.sweeper.exclude=[{flow.n_flows:12,data:spiral4}]"],
        3,
    ),
    "exclude any of": (
        ["flow.n_flows=range(1,9)", "hydra.sweeper.exclude=[{flow.n_flows:[1,2]},{flow.n_flows:'range(5,9)'}]"],
        2,
    ),
    "exclude a number in another spelling": (["train.lr=1e-3,2e-3", "hydra.sweeper.exclude=[{train.lr:0.0010}]"], 1),
    "exclude a default": (
        ["hydra.sweeper.grids=[{seed:[0,1]},{flow.n_flows:[6,7]}]", "hydra.sweeper.exclude=[{flow.n_flows:6}]"],
        1,
    ),
    "exclude null": (["train.grad_clip=null,1", "hydra.sweeper.exclude=[{train.grad_clip:null}]"], 1),
    "exclude a choice of group": (["train=quick,default", "hydra.sweeper.exclude=[{train:quick}]"], 1),
    "exclude what cannot run": (
        [
            "train.warmup=0,3000",
            "train.steps=2000,4000",
            "hydra.sweeper.exclude=[{train.warmup:3000,train.steps:2000}]",
        ],
        3,
    ),
    "exclude what the command line leaves out": (
        [
            "hydra.sweeper.params={data:[moons,spiral4]}",
            "data=moons",
            "seed=0,1",
            "hydra.sweeper.exclude=[{data:spiral4,seed:1}]",
        ],
        2,
    ),
    "repeats": (["data=moons,circles", "hydra.sweeper.repeats=5"], 10),
    "repeats from a seed": (["seed=7", "hydra.sweeper.repeats=3"], 3),
    "repeats of one seed of an experiment": (
        ["experiment=ablate_norm", "data=moons", "seed=0", "hydra.sweeper.repeats=2"],
        6,
    ),
    "once with seeds": (["seed=0,1", "hydra.sweeper.repeats=1"], 2),
    "repeats of all": (
        [
            "hydra.sweeper.grids=[{zip:{flow.n_flows:[1,2],flow.hidden_depth:[6,3]}},{flow.n_flows:[2,6]}]",
            "hydra.sweeper.repeats=3",
            "hydra.sweeper.exclude=[{seed:2,flow.hidden_depth:3}]",
        ],
        11,
    ),
}


@pytest.mark.parametrize(("arguments", "n"), GRIDS.values(), ids=GRIDS)
def test_the_runs_of_a_command_line(expanded, arguments, n):
    specs, _ = expanded(*arguments)
    assert len({run_id(spec) for spec in specs}) == n


def test_what_is_zipped_excluded_and_repeated(expanded):
    specs, excluded = expanded(
        "hydra.sweeper.zip={flow.n_flows:[1,2],flow.hidden_depth:[6,3]}", "data=moons,circles",
        "hydra.sweeper.exclude=[{flow.n_flows:2,data:circles}]", "hydra.sweeper.repeats=2", "seed=4",
    )  # fmt: skip
    found = Counter((s.flow.n_flows, s.flow.hidden_depth, s.data.name, s.seed) for s in specs)
    pairs = [(1, 6, "moons"), (1, 6, "circles"), (2, 3, "moons")]
    assert found == Counter((*pair, seed) for pair in pairs for seed in (4, 5)) and excluded == 2


def test_what_is_recorded_does_not_restrict_the_grids(expanded):
    for record in ([], ["record=none"]):
        specs, _ = expanded("experiment=ablate_corners", "data=moons", "seed=0", *record)
        assert len({run_id(spec) for spec in specs}) == 7


def test_interpolated_overrides_of_a_sweep(expanded):
    specs, _ = expanded("train.warmup=${train.steps}", "seed=0,1")
    assert [spec.train.warmup == spec.train.steps for spec in specs] == [True, True]


@st.composite
def lists(draw, keys, largest=3):
    """Some keys with lists of values."""
    some = draw(st.lists(st.sampled_from(sorted(keys)), unique=True, max_size=largest)) if keys else []
    return {k: draw(st.lists(st.sampled_from(KEYS[k]), min_size=1, max_size=2)) for k in some}


@st.composite
def zips(draw, keys):
    n, columns = draw(st.integers(1, 3)), draw(lists(keys, 2))
    return {k: draw(st.lists(st.sampled_from(KEYS[k]), min_size=n, max_size=n)) for k in columns}


@st.composite
def sweeps(draw):
    keys = draw(st.sampled_from([set(KEYS), set(KEYS) - {"seed"}]))
    side = draw(zips(keys))
    grids = []
    for _ in range(draw(st.integers(0, 3))):
        inner = draw(zips(keys - set(side)))
        grids.append(draw(lists(keys - set(side) - set(inner))) | ({"zip": inner} if inner else {}))
    sweep = {"params": draw(lists(keys, 2)), "zip": side, "grids": grids, "cli": draw(lists(keys, 2))}
    sweep["repeats"] = draw(st.integers(1, 3))
    entry = lists(set(KEYS), 2).filter(bool)
    if there := union(sweep, narrowed=False):
        some = st.sets(st.sampled_from(sorted(KEYS)), min_size=1, max_size=2)
        entry |= st.builds(lambda point, keys: {k: [point[k]] for k in keys}, st.sampled_from(there), some)
    return sweep | {"exclude": draw(st.lists(entry, max_size=2))}


def member(point, sweep, *, narrowed):
    """Whether a point belongs to the union, said of the point instead of made by a product."""

    def has(key, listed):
        return point[key] in listed

    def rows(columns):
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}]

    around = [sweep["cli"], sweep["params"]] if narrowed else [sweep["params"], sweep["cli"]]
    for grid in sweep["grids"] or [{}]:
        own = {k: v for k, v in grid.items() if k != "zip"}
        for outer, inner in itertools.product(rows(sweep["zip"]), rows(grid.get("zip", {}))):
            row = {k: [v] for k, v in (outer | inner).items()}
            says = {k: next((part[k] for part in (row, own, *around) if k in part), [START[k]]) for k in KEYS}
            agrees = not narrowed or all(has(k, v) for k, v in sweep["cli"].items())
            if agrees and all(has(k, v) for k, v in says.items()):
                return True
    return False


def union(sweep, *, narrowed):
    """The points of a sweep, repeated; without what the command line restricts if it is `narrowed`."""
    values = [sorted(set(listed)) for listed in KEYS.values()]
    space = [dict(zip(KEYS, row, strict=True)) for row in itertools.product(*values)]
    once = [point for point in space if member(point, sweep, narrowed=narrowed)]
    return [point | {"seed": point["seed"] + i} for point in once for i in range(sweep["repeats"])]


def model(sweep):
    """The set of points, or the key that is wrong."""
    if sweep["repeats"] > 1 and len({p["seed"] for p in union(sweep | {"repeats": 1}, narrowed=True)}) > 1:
        return "hydra.sweeper.repeats"

    def hit(entry, point):
        return all(point[k] in v for k, v in entry.items())

    points, wide = union(sweep, narrowed=True), union(sweep, narrowed=False)
    for i, entry in enumerate(sweep["exclude"]):
        if points and not any(hit(entry, p) for p in points + wide):
            return f"hydra.sweeper.exclude[{i}]"
    return {tuple(p.values()) for p in points if not any(hit(e, p) for e in sweep["exclude"])}


@settings(max_examples=60, deadline=None)
@given(sweep=sweeps())
def test_points_are_those_of_a_plain_model(plain_sweeper, sweep):
    base = plain_sweeper
    sweeper = GridsSweeper(**{k: v for k, v in sweep.items() if k != "cli"}, sample=None, resume=False)
    sweeper.hydra_context, sweeper.config, sweeper.composer = base.hydra_context, base.config, base.composer
    arguments = [f"{k}={','.join(map(str, v))}" for k, v in sweep["cli"].items()]
    expected = model(sweep)
    if isinstance(expected, str):
        with pytest.raises(SpecError) as caught:
            sweeper.command(arguments).points()
        assert caught.value.key == expected
        return
    points, excluded = sweeper.command(arguments).points()
    specs = [sweeper.composer.spec(point) for point in points]
    assert {(s.flow.n_flows, s.train.lr, s.data.name, s.seed) for s in specs} == expected
    sweeper.options = replace(sweeper.options, exclude=[])
    assert len(sweeper.command(arguments).points()[0]) == len(points) + excluded


SPELLINGS = {  # arguments → runs: a key is the same key however it is spelled
    "forced": (["experiment=ablate_flows", "data=moons", "seed=0", "++flow.n_flows=4"], 1),
    "forced, a key of params": (["experiment=ablate_flows", "data=moons", "++seed=0"], 9),
    "forced, several values": (["experiment=ablate_flows", "data=moons", "seed=0", "++flow.n_flows=4,5"], 2),
    "forced, a point of no grid": (["hydra.sweeper.grids=[{seed:[0,1]},{seed:2}]", "++seed=7"], 0),
    "forced, counted from": (["++seed=7", "hydra.sweeper.repeats=3"], 3),
    "forced, recorded": (["hydra.sweeper.grids=[{record.walk:[1,2]}]", "++record.walk=3"], 1),
    "forced in a grid": (["hydra.sweeper.grids=[{++seed:[0,1,2]}]", "seed=1"], 1),
    "forced in a zip": (["hydra.sweeper.zip={++seed:[0,1],flow.n_flows:[1,2]}", "seed=1"], 1),
    "forced in params": (["hydra.sweeper.params={++seed:[0,1,2]}", "seed=1,2"], 2),
    "forced in exclude": (["seed=0,1", "hydra.sweeper.exclude=[{++seed:1}]"], 1),
    "a group in its own package": (["hydra.sweeper.grids=[{data@data:[moons,circles]}]", "data=moons"], 1),
    "that, excluded": (["data=moons,circles", "hydra.sweeper.exclude=[{data@data:moons}]"], 1),
    "as a dictionary": (["experiment=ablate_flows", "data=moons", "seed=0", "flow={n_flows:4}"], 1),
    "as a dictionary of texts": (
        ["hydra.sweeper.grids=[{flow.activation:[relu,tanh]}]", "flow={activation:'tanh'}"],
        1,
    ),
    "as a forced dictionary": (["experiment=ablate_flows", "data=moons", "seed=0", "++flow={n_flows:4}"], 1),
    "the last one counts": (["hydra.sweeper.grids=[{seed:[0,1,2]}]", "seed=0,1", "++seed=2"], 1),
}


@pytest.mark.parametrize(("arguments", "n"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_is_one_key_however_it_is_spelled(expanded, arguments, n):
    specs, _ = expanded(*arguments)
    assert len({run_id(spec) for spec in specs}) == n


@pytest.mark.parametrize("removed", ["~flow.n_flows", "~flow.n_flows=6"])
def test_a_key_that_is_removed_is_removed_from_every_point(expanded, removed):
    with pytest.raises(SpecError, match=r"flow.n_flows: expected a value; got nothing"):
        expanded("experiment=ablate_flows", "data=moons", removed)


SAID_ONCE = {
    "redo=failed": True, "++redo=diverged": True, "+mixed=true": True, "~redo": True, "++hydra.sweep.dir=s": True,
    "hydra.sweeper.resume=true": True, "seed=0": False, "++redone=1": False, "-m": False, "--config-dir=redo": False,
    "redo": False,
}  # fmt: skip


@pytest.mark.parametrize(("text", "once"), SAID_ONCE.items(), ids=SAID_ONCE)
def test_what_a_resumed_sweep_is_not_told_again(text, once):
    assert is_said_once(text) == once


def test_the_plan_of_a_sweep_with_forced_keys(nfexp, small_args, monkeypatch):
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: None)
    words = ["++redo=diverged", "++mixed=true", "++fail_fast=false", "++seed=3", "hydra.sweep.dir=s"]
    code, _, err = nfexp("-m", *small_args, "record=none", *words)
    plan = json.loads(Path("s/sweep.json").read_text())
    assert code == 0 and plan["arguments"] == ["-m", *small_args, "record=none", "++fail_fast=false", "++seed=3"], err
    assert plan["jobs"][0]["overrides"] == [*small_args, "record=none", "++seed=3"]
    assert plan["centres"]["moons"]["seed"] == 3


TEXTS = [
    "A, B", "Z", "\\", "\\\\", " a", "a ", "a b", "f(x)", "range(3)", "choice(a,b)", "2024", "007", "1e3", "-1",
    "1_000", "0x1F", "true", "False", "null", "NULL", "inf", "NaN", "~", "???", "", " ", "[1]", "{a:1}", "a=b", "a:b",
    "'", '"', "it's", "'\"'", "\\'", "a\\", "${x}", "\\${x}", "${", "$", "a\nb", "\ttab", "é", "日本", "#", "*", "a,b",
    "(", ")", "]", "}", ",", "=", "%", "a..b",
]  # fmt: skip


def same_value(a, b):
    return a == b and type(a) is type(b)


def arrives(sweeper, values):
    """What the configurations of a grid with a list of values hold."""
    sweeper.options = replace(sweeper.options, grids={"all": {"data.text": values}})
    points, _ = sweeper.command([]).points()
    assert len(points) == len(values)
    return [sweeper.composer.plain(point)["data"]["text"] for point in points]


@pytest.fixture(scope="module")
def free_sweeper(sweeper_of):
    return sweeper_of()[0]


def test_a_list_entry_arrives_as_the_text_it_is(free_sweeper):
    assert arrives(free_sweeper, TEXTS) == TEXTS
    for text in TEXTS[:8]:
        free_sweeper.options = replace(free_sweeper.options, exclude=[{"data.text": [text]}])
        kept, excluded = free_sweeper.command([]).points()
        free_sweeper.options = replace(free_sweeper.options, exclude=[])
        assert excluded == 1 and len(kept) == len(TEXTS) - 1, text


HARD = st.text(alphabet=st.sampled_from("ab1 \\'\"${}[](),:=\n\t~+-_.%#é"), max_size=8)
SCALARS = HARD | st.text(max_size=20) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


@settings(max_examples=30, deadline=None)
@given(values=st.lists(SCALARS, min_size=1, max_size=3))
def test_a_list_entry_arrives_as_exactly_that_value(free_sweeper, values):
    found = arrives(free_sweeper, values)
    assert all(map(same_value, found, values)) and len(found) == len(values)


@settings(max_examples=15, deadline=None)
@given(value=SCALARS)
def test_hydra_reads_a_quoted_value_as_that_value(free_sweeper, value):
    config = free_sweeper.hydra_context.config_loader.load_sweep_config(
        free_sweeper.config, [f"data.text={quoted(value)}"]
    )
    assert same_value(OmegaConf.to_container(config.data, resolve=True)["text"], value)


BAD = {
    "a key twice in two spellings": (
        ["hydra.sweeper.grids=[{seed:[0,1],++seed:[2]}]"],
        r"grids\[0\].seed: expected each key once; got \+\+seed as well",
    ),
    "a list in a list": (
        ["hydra.sweeper.grids=[{data.text:[[a]]}]"],
        r"grids\[0\].data.text: expected a value or a list of values; got \[\['a'\]\]",
    ),
    "a text that is no list of values": (
        ["hydra.sweeper.grids=[{data.text:'f(x)'}]"],
        r"grids\[0\].data.text: expected values as the command line spells them, or a list; got 'f\(x\)'",
    ),
    "empty list": (
        ["+hydra.sweeper.grids.a={seed:[]}"],
        r"grids.a.seed: expected a value or a list of values; got \[\]",
    ),
    "a grid of nothing": (["+hydra.sweeper.grids.a=3"], "grids.a: expected a grid: keys with lists of values; got 3"),
    "a list of no grids": (
        ["hydra.sweeper.grids=[3]"],
        r"grids\[0\]: expected a grid: keys with lists of values; got 3",
    ),
    "grids of no sort": (["hydra.sweeper.grids=3"], "grids: expected grids by name, or a list of grids; got 3"),
    "params of no sort": (["hydra.sweeper.params=[1]"], r"params: expected a group of keys; got \[1\]"),
    "a value of no sort": (
        ["hydra.sweeper.params={seed:{a:1}}"],
        "params.seed: expected a value or a list of values; got .*",
    ),
    "endless values": (
        ["hydra.sweeper.params={train.lr:'interval(0,1)'}"],
        "params.train.lr: expected a list of values; got .*",
    ),
    "no grid agrees": (
        ["hydra.sweeper.grids=[{seed:[0,1]}]", "seed=7"],
        "grids: expected at least one run; got none that agrees.*",
    ),
    "zip of no sort": (["hydra.sweeper.zip=3"], "zip: expected keys with lists of values; got 3"),
    "zip of no sort in a grid": (
        ["+hydra.sweeper.grids.a={zip:3}"],
        "grids.a.zip: expected keys with lists of values; got 3",
    ),
    "zip of two lengths": (
        ["hydra.sweeper.zip={seed:[0,1],flow.n_flows:[1]}"],
        "zip: expected lists of one length; got 'seed: 2, flow.n_flows: 1'",
    ),
    "zip of two lengths in a grid": (
        ["+hydra.sweeper.grids.a={zip:{seed:[0,1],flow.n_flows:[1]}}"],
        "grids.a.zip: expected lists of one length; got 'seed: 2, flow.n_flows: 1'",
    ),
    "a key twice in a grid": (
        ["+hydra.sweeper.grids.a={zip:{seed:[0,1]},seed:[3]}"],
        "grids.a.seed: expected a key in the grid or in its zip; got it in both",
    ),
    "a key in the zip and in a grid": (
        ["hydra.sweeper.zip={seed:[0,1]}", "hydra.sweeper.grids=[{},{seed:[3]}]"],
        r"zip.seed: expected a key that no grid has; got one of hydra.sweeper.grids\[1\]",
    ),
    "exclude of no sort": (
        ["hydra.sweeper.exclude={seed:1}"],
        r"exclude: expected a list of \{key: value\}; got \{'seed': 1\}",
    ),
    "an entry of no sort": (["hydra.sweeper.exclude=[seed]"], r"exclude\[0\]: expected keys with values; got 'seed'"),
    "an entry for everything": (["hydra.sweeper.exclude=[{}]"], r"exclude\[0\]: expected keys with values; got \{\}"),
    "an entry with an empty list": (
        ["hydra.sweeper.exclude=[{seed:[]}]"],
        r"exclude\[0\].seed: expected a value or .*; got \[\]",
    ),
    "a slip in an entry's key": (
        ["flow.n_flows=1,2", "hydra.sweeper.exclude=[{flow.n_flows:1},{flow.n_flow:2}]"],
        r"exclude\[1\].flow.n_flow: expected a key of the configuration; got an unknown one",
    ),
    "a slip in an entry's value": (
        ["flow.n_flows=1,2", "hydra.sweeper.exclude=[{flow.n_flows:[11,12]}]"],
        r"exclude\[0\]: expected values that a point of the sweep has; got \{'flow.n_flows': \[11, 12\]\}",
    ),
    "an entry of values never together": (
        [
            "hydra.sweeper.grids=[{flow.n_flows:[1,2]},{data:circles}]",
            "hydra.sweeper.exclude=[{flow.n_flows:1,data:circles}]",
        ],
        r"exclude\[0\]: expected values that a point of the sweep has; got .*",
    ),
    "an entry of a default that is overridden": (
        ["flow.n_flows=1,2", "hydra.sweeper.exclude=[{flow.n_flows:6}]"],
        r"exclude\[0\]: expected values that a point of the sweep has; got .*",
    ),
    "true is no number": (
        ["flow.n_flows=1,2", "hydra.sweeper.exclude=[{flow.n_flows:true}]"],
        r"exclude\[0\]: expected values that a point of the sweep has; got .*",
    ),
    "all excluded": (
        ["seed=0,1", "hydra.sweeper.exclude=[{seed:[0,1]}]"],
        "exclude: expected at least one run; got none left",
    ),
    "no repeats": (["hydra.sweeper.repeats=0"], "repeats: expected an integer >= 1; got 0"),
    "repeats of no sort": (["hydra.sweeper.repeats=many"], "repeats: expected an integer >= 1; got 'many'"),
    "repeats are no switch": (["hydra.sweeper.repeats=true"], "repeats: expected an integer >= 1; got True"),
    "repeats of nothing": (["hydra.sweeper.repeats=null"], "repeats: expected an integer >= 1; got None"),
    "no sample": (["hydra.sweeper.sample=0"], "sample: expected an integer >= 1, or null; got 0"),
    "a sample of no sort": (["hydra.sweeper.sample=few"], "sample: expected an integer >= 1, or null; got 'few'"),
    "a sample is no switch": (["hydra.sweeper.sample=true"], "sample: expected an integer >= 1, or null; got True"),
    "repeats and seeds": (
        ["seed=range(9)", "hydra.sweeper.repeats=2"],
        "repeats: expected 1, or a sweep of one seed to count from; got 9 seeds: 0, 1, 2, 3, …",
    ),
    "repeats and seeds of an experiment": (
        ["experiment=ablate_norm", "hydra.sweeper.repeats=2"],
        "repeats: expected 1, or a sweep of one seed to count from; got 3 seeds: 0, 1, 2",
    ),
    "repeats and seeds of grids": (
        ["hydra.sweeper.grids=[{seed:1},{seed:2}]", "hydra.sweeper.repeats=2"],
        "repeats: expected 1, or a sweep of one seed to count from; got 2 seeds: 1, 2",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_grids(nfexp, arguments, message):
    code, out, err = nfexp("-m", *arguments)
    assert code == 1 and re.fullmatch(rf"nfexp: hydra\.sweeper\.{message}\n", err), err
    assert not out and not list(Path().iterdir())


def test_a_sample_is_drawn_from_the_grid_and_always_the_same(nfexp):
    def dry(*words):
        return nfexp("-m", "seed=range(20)", "flow.n_flows=1,2", "dry_run=true", *words)[1]

    few = dry("hydra.sweeper.sample=7")
    assert "\n7 runs (7 moons) in " in few and "drawn from 40\n" in few
    assert few.splitlines()[:-1] == dry("hydra.sweeper.sample=7").splitlines()[:-1]  # the last line is an estimate
    assert "\n40 runs (40 moons) in " in dry("hydra.sweeper.sample=90")


def test_the_papers_grid_has_its_cells(nfexp):
    code, out, err = nfexp("-m", "experiment=paper_grid", "dry_run=true")
    assert code == 0, err
    assert "\n1152 runs (288 moons, 288 circles, 288 spiral2, 288 spiral4) in " in out
    assert "\n11,520,000 member-steps, 1.19e+05 TFLOP; about " in out  # 119 PFLOP, as counted by hand


def test_repeats_of_what_is_no_seed(nfexp):
    assert nfexp("-m", "seed=x", "hydra.sweeper.repeats=2")[2].startswith("nfexp: seed: expected an integer >= 0")


def test_the_sweeper_keys_are_shown(nfexp):
    code, out, _ = nfexp("--cfg", "hydra")
    shown = yaml.safe_load(out)["hydra"]["sweeper"]
    assert code == 0 and set(shown) == {"_target_", "params", "zip", "grids", "exclude", "repeats", "sample", "resume"}


def test_all_of_it_in_yaml(nfexp, tmp_path):
    (tmp_path / "more/experiment").mkdir(parents=True)
    (tmp_path / "more/experiment/mine.yaml").write_text(
        """# @package _global_
flow:
  hidden_depth: 2
hydra:
  sweeper:
    zip: {data: [moons, circles], data.noise: [0.1, 0.2]}
    grids:
      - flow.n_flows: range(1,5)
      - zip:
          flow.n_flows: 1,2
          flow.hidden_depth: [6, 2]
    exclude:
      - flow.n_flows: [3, 4]
        data: circles
    repeats: 3
"""
    )
    code, out, err = nfexp("-m", "hydra.searchpath=[file://more]", "experiment=mine", "dry_run=true")
    assert code == 0, err  # 2 × (4 + 2) points, (2, 2) of the default depth 2 twice, 2 excluded; thrice
    assert re.search(r"\n24 runs \(15 moons, 9 circles\) in \d+ stacks; 6 duplicates dropped, 6 excluded\n", out), out
    assert not list((tmp_path).glob("outputs"))


MIXTURE = (
    "hydra.sweeper.zip={data:[moons,circles],data.noise:[0.1,0.2]}",
    "hydra.sweeper.grids=[{flow.n_flows:[1,2]},{seed:0}]",
    "hydra.sweeper.exclude=[{flow.n_flows:2,data:circles}]",
    "hydra.sweeper.repeats=2",
    "flow.n_flows=1,2",
)  # 2 pairs × (2 + 2) points, doubled; (2, circles) is excluded from both grids


def test_a_dry_run_counts_jobs_duplicates_stacks_and_steps(nfexp):
    code, out, err = nfexp("-m", *MIXTURE, "train.steps=400", "train.warmup=0", "dry_run=true")
    assert code == 0 and not list(Path().iterdir()), err
    *table, runs, cost = out.strip().splitlines()
    assert runs == "6 runs (4 moons, 2 circles) in 2 stacks; 6 duplicates dropped, 4 excluded"
    assert re.match(
        r"2,400 member-steps, 0\.00153 TFLOP; about \S+ minutes of training on this machine; .* at most \S+ GB", cost
    )
    columns = [dict(zip(table[0].split(), row.split(), strict=False)) for row in table[1:]]
    assert Counter((c["runs"], c["flows"], c["steps"]) for c in columns) == {("4", "1", "400"): 1, ("2", "2", "400"): 1}
    assert all(int(c["MB"]) > 0 for c in columns)


def test_resume_with_the_sweepers_keys(nfexp, small_args, monkeypatch):
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: None)
    tiny = ("train.steps=2", "train.warmup=0", "train.n_evals=1", "record=none")
    small = [a for a in small_args if a.split("=")[0] not in {t.split("=")[0] for t in tiny}]
    sweep = ["-m", *small, *tiny, *MIXTURE, "hydra.sweep.dir=s"]
    assert nfexp(*sweep)[0] == 0
    shutil.rmtree("s/0001")
    for again, entry in ((sweep, cli.main), (["s"], cli.resume)):
        code, out, err = nfexp(*again, "dry_run=true", entry=entry)
        assert code == 0, err
        assert "\n1 run (1 moons) in 1 stack; " in out and "; 5 more finished\n2 member-steps" in out
        assert not Path("s/0001").exists()
    code, _, err = nfexp("s", entry=cli.resume)
    assert code == 0 and len(list(Path("s").glob("*/result.json"))) == 6, err
