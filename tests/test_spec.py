"""The edge: every bad value gives one message with the key, what was expected and what came."""

import hashlib
import json
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from nfexp import spec as specs
from nfexp.configuration import conf_dir
from nfexp.data.densities import TARGET_NAMES
from nfexp.flows import export, nn
from nfexp.flows.bases import BASES
from nfexp.flows.image import networks
from nfexp.published import TABLES
from nfexp.spec import identity
from nfexp.tables import BUNDLED

BAD = {
    "unknown key": ({"flow.n_layers": 3}, "flow.n_layers: expected one of the keys n_flows, .*; got an unknown key"),
    "misspelt key": ({"flow.weigths": "val"}, r"flow.weigths: expected one .*; got an unknown key \(near: 'weights'\)"),
    "misspelt warm-up": (
        {"train.warmup": "up_to_200_or_third"},
        "train.warmup: expected an integer >= 0, up_to_N or up_to_N_or_a_third; got 'up_to_200_or_third'",
    ),
    "missing key": ({"flow.n_flows": ...}, "flow.n_flows: expected a value; got nothing"),
    "string for integer": ({"flow.n_flows": "abc"}, "flow.n_flows: expected an integer >= 1 .*; got 'abc'"),
    "float for integer": ({"flow.n_flows": 2.5}, "flow.n_flows: expected an integer .*; got 2.5"),
    "boolean for integer": ({"seed": True}, "seed: expected an integer .*; got True"),
    "null for integer": ({"seed": None}, "seed: expected an integer .*; got None"),
    "no flows": ({"flow.n_flows": 0}, "flow.n_flows: expected an integer >= 1 .*; got 0"),
    "negative seed": ({"seed": -1}, "seed: expected an integer >= 0 .*; got -1"),
    "no noise": ({"data.noise": 0}, "data.noise: expected a number > 0 .*; got 0"),
    "negative noise": ({"data.noise": -0.1}, "data.noise: expected a number > 0 .*; got -0.1"),
    "noise not a number": ({"data.noise": float("nan")}, "data.noise: expected a number > 0 .*; got nan"),
    "infinite rate": ({"train.lr": float("inf")}, "train.lr: expected a number > 0 .*; got inf"),
    "one sample": ({"data.n_samples": 1}, "data.n_samples: expected an integer >= 2 .*; got 1"),
    "unknown activation": ({"flow.activation": "bent"}, "flow.activation: expected one of relu, .*; got 'bent'"),
    "unknown mask": ({"flow.mask": "checker"}, "flow.mask: expected one of alternating, .*; got 'checker'"),
    "unknown scale": ({"flow.scale": "sigmoid"}, "flow.scale: expected one of learned, tanh, soft, exp; got 'sigmoid'"),
    "unknown init": ({"flow.init": "zero"}, "flow.init: expected one of spread, identity, random, kaiming; got 'zero'"),
    "unknown standardise": (
        {"flow.standardise": True},
        "flow.standardise: expected one of moments, none, marginals; got True",
    ),
    "marginals of vectors": (
        {"flow.standardise": "marginals"},
        "flow.standardise: expected moments or none where flow.kind is 'vector'; got 'marginals'",
    ),
    "unknown coupling": ({"flow.coupling": "spline"}, "flow.coupling: expected one of affine, additive; got 'spline'"),
    "unknown base": ({"flow.base": "uniform"}, "flow.base: expected one of normal, .*; got 'uniform'"),
    "no members": ({"flow.members": 0}, "flow.members: expected an integer >= 1 and <= 1000; got 0"),
    "unknown weights": ({"flow.weights": "test"}, "flow.weights: expected one of equal, val; got 'test'"),
    "tail bound": ({"flow.tail_bound": 0}, "flow.tail_bound: expected a number > 0 .* or null; got 0"),
    "tail bound on raw points": (
        {"flow.tail_bound": 3.0, "flow.standardise": "none"},
        "flow.tail_bound: expected null where flow.standardise is 'none', .*; got 3.0",
    ),
    "unknown input": (
        {"flow.conditioner_input": "all"},
        "flow.conditioner_input: expected one of masked, passed; got 'all'",
    ),
    "unknown tail": ({"flow.tail": "sinh"}, "flow.tail: expected one of none, learned; got 'sinh'"),
    "batch size word": ({"train.batch_size": "all"}, "train.batch_size: expected .* or 'full'; got 'all'"),
    "negative training noise": ({"train.noise": -0.1}, "train.noise: expected a number >= 0 .*; got -0.1"),
    "training noise that is a word": (
        {"train.noise_end": "small"},
        "train.noise_end: expected a number >= 0 .*; got 'small'",
    ),
    "unknown optimizer": ({"train.optimizer": "sgd"}, "train.optimizer: expected one of adam, nadam; got 'sgd'"),
    "clip": ({"train.grad_clip": 0}, "train.grad_clip: expected a number > 0 .* or null; got 0"),
    "warm-up": ({"train.warmup": 10**6}, "train.warmup: expected at most train.steps = .*; got 1000000"),
    "text without letters": ({"data.name": "text"}, "data.text: expected letters to draw .*; got None"),
    "number for text": ({"data.text": 7}, "data.text: expected a string; got 7"),
    "a target without noise": ({"data.noise": None}, "data.noise: expected a number for data.name=moons; got None"),
    "a kind of no sort": ({"data.kind": "sheet"}, "data.kind: expected one of density, own, table, .*; got 'sheet'"),
    "a path of no sort": ({"data.path": 3}, "data.path: expected a string; got 3"),
    "a parameter of another target": (
        {"data.factor": 0.5},
        "data.factor: expected one of the keys name, .*; got an unknown key",
    ),
    "a parameter out of range": (
        {"data.name": "gaussians8", "data.modes": 0},
        "data.modes: expected an integer >= 1 .*; got 0",
    ),
    "own target without a place": (
        {"data.kind": "own"},
        "data.target: expected a density as file.py:Name .*; got None",
    ),
    "group is a number": ({"flow": 3}, "flow: expected a group of keys; got 3"),
    "list": ({"flow.n_flows": [1, 2]}, r"flow.n_flows: expected an integer .*; got \[1, 2\]"),
    "a huge integer": ({"seed": 10**400}, "seed: expected an integer >= 0 .*; got 1000.*"),
    "name with a path": ({"name": "../evil"}, "name: expected letters, digits, .*; got '../evil'"),
}


def nested(flat):
    out = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        if group and isinstance(out.get(group), int):
            continue
        (out.setdefault(group, {}) if group else out)[leaf] = value
    return out


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_values(make_spec, changes, message):
    flat = dict(changes) | {k: v for k, v in specs.flatten(make_spec()).items() if k not in changes}
    with pytest.raises(specs.SpecError) as caught:
        specs.from_mapping(nested({k: v for k, v in flat.items() if v is not ...}))
    assert re.fullmatch(message + ".*", str(caught.value))


def test_a_parameter_that_is_as_usual_is_in_no_record(make_spec):
    usual = make_spec(data__name="circles", data__factor=0.8)
    assert usual == make_spec(data__name="circles") and "data.factor" not in specs.flatten(usual)
    other = make_spec(data__name="circles", data__factor=0.5)
    assert specs.flatten(other)["data.factor"] == 0.5 and specs.run_id(other) != specs.run_id(usual)
    assert specs.unflatten(specs.flatten(other)) == other
    assert specs.stack_key(other) == specs.stack_key(usual)


def test_flatten_is_undone_by_unflatten(make_spec):
    spec = make_spec(train__batch_size="full", train__grad_clip=None)
    assert specs.unflatten(specs.flatten(spec)) == spec


def test_identity_is_what_can_change_a_number(make_spec):
    spec = make_spec()
    same = [
        replace(spec, name="other"),
        replace(spec, device="auto"),
        replace(spec, record=replace(spec.record, walk=9)),
    ]
    assert {specs.run_id(s) for s in same} == {specs.run_id(spec)}
    assert specs.run_id(replace(spec, seed=1)) != specs.run_id(spec)


def test_identities_stay_as_they_are_in_old_records(make_spec):
    assert specs.run_id(make_spec()) == "75c9c62c76b4f9ec"
    assert specs.run_id(make_spec(data__name="text", data__text="AB", flow__base="laplace")) == "28e8af9340364a1e"


def test_keys_that_may_be_absent_are_in_no_record_at_their_default(make_spec):
    flat = specs.flatten(make_spec())
    assert not any(key in flat for key in ("data.kind", "data.path", "data.dim", "data.jitter"))


def test_a_record_without_a_younger_key_is_the_run_that_it_was(make_spec):
    spec = specs.unflatten(specs.flatten(make_spec()) | specs.ADDED)
    old = {key: value for key, value in specs.flatten(spec).items() if key not in specs.ADDED}
    assert specs.unflatten(old) == spec
    counted = {key: value for key, value in specs.relevant(spec).items() if key in old}
    text = json.dumps(counted, sort_keys=True)
    assert specs.run_id(spec) == hashlib.sha256(text.encode()).hexdigest()[:16]


YOUNGER = {
    "flow.conditioner_input": "passed",
    "flow.tail_bound": 3.0,
    "flow.tail": "learned",
    "flow.members": 2,
    "flow.weights": "val",
    "train.optimizer": "nadam",
    "train.noise": 0.1,
    "train.noise_end": 0.1,
    "train.ema": 0.9,
}


@pytest.mark.parametrize(("key", "value"), YOUNGER.items(), ids=YOUNGER)
def test_a_younger_key_counts_where_it_changes_the_run(make_spec, key, value):
    assert specs.run_id(make_spec(**{key: value})) != specs.run_id(make_spec(**{key: specs.ADDED[key]}))


def test_every_younger_key_is_tried():
    assert set(YOUNGER) == {key for key in specs.ADDED if specs.is_relevant(key)}


def test_whole_numbers_for_floats_are_the_same_run(make_spec):
    assert specs.run_id(make_spec(train__lr=1)) == specs.run_id(make_spec(train__lr=1.0))


STACKED = {
    "data__name": "circles", "data__n_samples": 99, "data__noise": 0.3, "flow__mask": "fixed", "seed": 9,
    "train__lr": 1.0, "train__grad_clip": None, "train__select": "last", "train__noise": 0.1,
    "train__noise_end": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), STACKED.items(), ids=STACKED)
def test_stack_mates_may_differ_in(make_spec, key, value):
    assert specs.stack_key(make_spec(**{key: value})) == specs.stack_key(make_spec())


def test_full_batches_stack_by_sample_count(make_spec):
    a, b = (make_spec(train__batch_size="full", data__n_samples=n) for n in (50, 60))
    assert specs.stack_key(a) != specs.stack_key(b)
    assert specs.stack_key(a) == specs.stack_key(make_spec(train__batch_size=50, data__n_samples=200))


def test_compact_networks_stack_by_what_their_masks_pass(make_spec, monkeypatch):
    masks = ("alternating", "fixed", "half", "random")
    compact = [make_spec(flow__mask=mask, flow__conditioner_input="passed") for mask in masks]
    whole = [make_spec(flow__mask=mask, flow__conditioner_input="masked") for mask in masks]
    assert len({specs.stack_key(s) for s in compact}) == 1  # in the plane each passes one coordinate
    monkeypatch.setattr(identity, "event_shape", lambda spec: (3,))
    assert len({specs.stack_key(s) for s in compact}) == 4
    assert len({specs.stack_key(s) for s in whole}) == 1


def test_choices_name_what_exists():
    choices = {f.name: f.metadata["choices"] for f in fields(specs.Flow) if "choices" in f.metadata}
    for known in (nn.ACTIVATIONS, networks.SIGMA, export.ACTIVATIONS):
        assert tuple(known) == choices["activation"], "see the row of activations in docs/architecture.md"
    assert tuple(BASES) == choices["base"]
    options = {path.stem for path in (Path(conf_dir()) / "data").glob("*.yaml")}
    known = {*TARGET_NAMES, *BUNDLED, *TABLES, "table", "own", "digits_table", "images"}
    known |= set(specs.IMAGE_SETS) - {"npz", "folder"}  # which data=images reads
    assert options == known, "each target needs conf/data/<name>.yaml, and no other file may lie there"


def test_an_error_comes_back_whole_from_another_process():
    error = specs.SpecError("data.noise", "a number", specs.Words("nothing"))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.key) == (str(error), "data.noise")
