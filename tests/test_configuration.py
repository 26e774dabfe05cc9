"""A user's own configuration: his files, his folder of them, his environment."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nfexp.configuration import conf_dir, plain_of, spec_of
from nfexp.spec import run_id

HEAD = b"# @package _global_\n"
FILES = {  # what an experiment file holds → what is said of it
    "a bad indent": (HEAD + b"train:\n  steps: 5\n   warmup: 2\n", r"FILE, line 4: expected YAML; got mapping .*"),
    "a tab": (HEAD + b"train:\n\tsteps: 5\n", r"FILE, line 3: expected YAML; got found character '\\t' .*"),
    "a key twice": (HEAD + b"seed: 1\nseed: 2\n", "FILE, line 3: expected YAML; got found duplicate key seed"),
    "an open bracket": (HEAD + b"seed: [1\n", "FILE, line 3: expected YAML; got expected .*"),
    "an unknown tag": (HEAD + b"seed: !x 1\n", "FILE, line 2: expected YAML; got could not determine .*"),
    "a control character": (HEAD + b'name: "a\x01"\n', "FILE: expected YAML; got unacceptable character .*"),
    "Latin-1": (HEAD + b"# caf\xe9\nseed: 1\n", "FILE, line 2: expected text in UTF-8; got the byte 0xe9"),
    "Latin-1, far down": (
        HEAD + "# é\n".encode() * 9000 + b"# caf\xe9\n", "FILE, line 9002: expected text in UTF-8; got the byte 0xe9",
    ),
    "nothing": (b"", "experiment: expected a file whose first line is '# @package _global_'; got an empty file"),
    "a comment": (b"# mine\n", "experiment: expected a file whose first line is .*; got an empty file"),
    "no package": (b"seed: 1\n", "experiment: expected a file whose first line is .*; got a file without that line"),
}  # fmt: skip
FLAGS = {  # a check of a plain run that no flag goes round
    "--config-dir=mine experiment=ablate_mask": "hydra.sweeper.grids: expected nfexp -m, .*; got a single run",
    "--config-dir mine experiment=ablate_mask": "hydra.sweeper.grids: expected nfexp -m, .*; got a single run",
    "-cd mine experiment=good": "seed: expected an integer >= 0 .*; got -3",
    "--config-d=mine experiment=good": "seed: expected an integer >= 0 .*; got -3",
    "-cn config flow.n_flows=0": "flow.n_flows: expected an integer >= 1 .*; got 0",
    "-cn own -cd mine": "seed: expected an integer >= 0 .*; got -7",
    "-r hydra.sweeper.repeats=3": "hydra.sweeper.repeats: expected nfexp -m, .*; got a single run",
    "--run seed=x": "seed: expected an integer >= 0 .*; got 'x'",
    "--resolve seed=x": "The --resolve flag can only be used .*",  # Hydra's own word on its flag comes first
    "-p train seed=x": "seed: expected an integer >= 0 .*; got 'x'",
    "-cd absent": "--config-dir: expected a folder; got 'absent'",
}


@pytest.fixture
def write():
    """Write an experiment of the folder `mine`."""

    def file(content, name="mine/experiment/good.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
        return str(Path(name).absolute())

    return file


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["run", "sweep"])
@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_bad_file_is_named(nfexp, write, content, message, flags):
    name = write(content)
    code, out, err = nfexp(*flags, "--config-dir=mine", "experiment=good")
    assert code == 1 and re.fullmatch(f"nfexp: {message.replace('FILE', re.escape(name))}\n", err) and not out, err
    assert [p.name for p in Path().iterdir()] == ["mine"]


@pytest.mark.parametrize(("arguments", "message"), FLAGS.items(), ids=FLAGS)
def test_no_flag_goes_round_the_check(nfexp, write, arguments, message):
    write(HEAD + b"seed: -3\n")
    write(b"defaults: [config, _self_]\nseed: -7\n", "mine/own.yaml")
    code, out, err = nfexp(*arguments.split())
    assert code == 1 and re.fullmatch(f"nfexp: {message}\n", err) and not out, err
    assert [p.name for p in Path().iterdir()] == ["mine"]


def test_flags_that_only_show_are_not_checked(nfexp, write):
    write(HEAD + b"seed: -3\n")
    code, out, _ = nfexp("--cfg", "job", "--config-dir=mine", "experiment=good")
    assert code == 0 and "seed: -3" in out


ENVIRONMENT = {  # key, text of the variable → what it is
    "an integer": ("seed", "3", 3),
    "a number": ("train.lr", "1e-3", 0.001),
    "a whole number": ("train.lr", "1", 1.0),
    "a number or a word": ("train.batch_size", "64", 64),
    "the word": ("train.batch_size", "full", "full"),
    "a number or null": ("train.grad_clip", "2.5", 2.5),
    "a truth": ("dry_run", "true", True),
    "text": ("data.text", "2024", "2024"),
    "a name": ("name", "7", "7"),
    "no integer": ("seed", "3.5", "3.5"),
    "blanks": ("seed", " 3", " 3"),
    "nothing": ("seed", "", ""),
}


@pytest.mark.parametrize(("key", "text", "value"), ENVIRONMENT.values(), ids=ENVIRONMENT)
def test_text_of_the_environment_is_read_as_the_keys_type(monkeypatch, key, text, value):
    monkeypatch.setenv("GIVEN", text)
    config = OmegaConf.create({"train": {}, "data": {}})
    OmegaConf.update(config, key, "${oc.env:GIVEN}")
    *group, leaf = key.split(".")
    found = plain_of(config)
    found = found[group[0]][leaf] if group else found[leaf]
    assert found == value and type(found) is type(value)
    OmegaConf.update(config, key, text)
    assert OmegaConf.to_container(config) == plain_of(config)


@pytest.mark.parametrize("arguments", [("-m", "dry_run=true"), ("flow.n_flows=0",)], ids=["sweep", "run"])
def test_a_seed_of_the_environment(nfexp, monkeypatch, arguments):
    monkeypatch.setenv("SEED", "3")
    _, _, err = nfexp(*arguments, "seed=${oc.env:SEED}")
    assert "seed" not in err
    assert nfexp(*arguments, "seed='3'")[2].startswith(("nfexp: seed: expected an integer", "nfexp: flow.n_flows"))


WARMUPS = {
    "the default of few steps": (["train.steps=20"], 6),
    "the default of 600 steps": (["train.steps=600"], 200),
    "the default of many": ([], 200),
    "the quick default": (["train=quick", "train.steps=3"], 1),
    "the classic one": (["train=classic", "train.steps=40"], 40),
    "asked for": (["train.steps=20", "train.warmup=7"], 7),
    "asked for, up to": (["train.steps=20", "train.warmup=up_to_9"], 9),
}


KEPT = {  # an option that records of old runs rest on, and the identity of its run
    ("classic", "classic"): "b26a60ba845b71c9",
    ("classic", "classic_quick"): "6238aeb36d92a647",
    ("tuned", "classic"): "15203990eeacf6a2",
    ("paper", "paper"): "202739591bdd2829",
    ("blog", "blog"): "43443c8f196d996c",
}


@pytest.mark.parametrize(("flow", "train"), KEPT, ids="-".join)
def test_an_older_recipe_stays_as_it_is(flow, train):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        spec = spec_of(compose("config", [f"flow={flow}", f"train={train}"]))
    assert run_id(spec) == KEPT[flow, train]


@pytest.mark.parametrize(("overrides", "steps"), WARMUPS.values(), ids=WARMUPS)
def test_the_default_warmup_follows_the_steps(overrides, steps):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        assert spec_of(compose("config", overrides)).train.warmup == steps


def test_a_warmup_that_is_asked_for_does_not_follow(nfexp):
    code, _, told = nfexp("train.steps=20", "train.warmup=21")
    assert code == 1 and "train.warmup: expected at most train.steps = 20; got 21" in told
