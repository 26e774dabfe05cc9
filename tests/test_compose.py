"""A job composed by nfexp leaves what it leaves by Hydra."""

import logging
import os

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from nfexp.configuration import conf_dir
from nfexp.sweep.compose import Composer

JOBS = {
    "values": ["flow.n_flows=2", "train.lr=1e-3", "train.grad_clip=null", "data.text='1e3'", "seed=7"],
    "groups": ["data=circles", "record=lean", "train=paper"],
    "an experiment": ["experiment=ablate_mask", "seed=1"],
    "interpolation": ["train.warmup=${train.steps}", "name=a-b"],
    "hydra's own keys": ["+hydra.job.env_set.X=1", "seed=2"],
    "a new key": ["+extra={a:[1,2]}", "seed=3"],
}
SETTINGS = {
    "as it comes": [],
    "a folder by overrides": ["hydra.sweep.subdir=${hydra:job.override_dirname}"],
    "a log by number": ["hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/${hydra.job.num}.log"],
    "naming": ["hydra.job.config.override_dirname.exclude_keys=[seed]"],
    "no .hydra": ["hydra.output_subdir=null"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_job_leaves_what_hydra_leaves(tmp_path, settings):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        command = [f"hydra.sweep.dir={tmp_path}", "record=none", *settings]
        master = hydra.compose_config("config", command, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        composer, basic = Composer(hydra.config_loader, master), BasicLauncher()
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        basic.setup(hydra_context=context, task_function=lambda config: 0.0, config=master)
        handlers = logging.root.handlers[:]
        try:
            basic.launch(list(JOBS.values()), initial_job_idx=3)
        finally:
            logging.root.handlers[:] = handlers
        pages = [composer.page(overrides, number) for number, overrides in enumerate(JOBS.values(), 3)]
    written = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*.yaml")}
    ours = {f"{os.path.relpath(p.folder, tmp_path)}/{name}": text for p in pages for name, text in p.files.items()}
    assert {k: yaml.safe_load(v) for k, v in ours.items()} == {k: yaml.safe_load(v) for k, v in written.items()}
    assert len(written) == (0 if "hydra.output_subdir=null" in settings else 3 * len(JOBS))
    logs = {p.logging["handlers"]["file"]["filename"] for p in pages}
    assert logs == {str(p) for p in tmp_path.rglob("*.log")} and len(logs) == len(JOBS)
