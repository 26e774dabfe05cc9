"""The usages of all commands but `nfexp` itself, apart from the commands: help needs none of their imports."""

from nfexp.usage import RUNS, Usage

RESUME = Usage(
    command="nfexp-resume",
    purpose="""Go on with a sweep: give its command again, train what has no finished record, report.
Finished runs are kept, and every run keeps its number.""",
    folders="the folder of a sweep, the one that holds sweep.json",
    several=False,
    options={
        "redo=failed|diverged|both": "train such runs again",
        "mixed=true": "also where finished runs are of another code version",
        "dry_run=true": "only say what there is to train",
        "fail_fast=true": "end at the first run that fails",
        "explorer=false": "do not write explorer.html at the end",
        "hydra.launcher.KEY=VALUE": "how and where runs are trained, such as hydra.launcher.workers=2",
        "--config-dir=PATH": "again, if the sweep was begun with it: what can name code is not taken from DIR unasked",
    },
    examples=[
        "nfexp-resume outputs/sweeps/adhoc/2026-01-31_12-00-00",
        "nfexp-resume 'Sweep (1)' redo=failed --config-dir=my_experiments",
    ],
)

REPORT = Usage(
    command="nfexp-report",
    purpose="Make tables, figures and pages of runs and sweeps again; print the verdicts and the paths of the pages.",
    folders=RUNS,
    options={
        "out=PATH": "where the report goes: the folder itself if not given; needed for several folders",
        "explorer=false": "do not write explorer.html, the page to ask questions with",
    },
    examples=[
        "nfexp-report outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-report outputs/sweeps/ablations outputs/sweeps/blog out=both",
    ],
)

PLOT = Usage(
    command="nfexp-plot",
    purpose="Draw figures from the stored results of runs and sweeps, without training; print their paths.",
    folders=RUNS,
    options={
        "figures=NAME,PATTERN_*": "which ones, by name or pattern (quote it); without it all but animations (gif_*)",
        "out=PATH": "where figures/ goes; needed for several folders",
    },
    examples=[
        "nfexp-plot outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-plot outputs/runs/2026-01-31_12-00-00 'figures=gallery_*,gif_walk_*' out=pictures",
    ],
)

BASELINES = Usage(
    command="nfexp-baselines",
    purpose="Fit densities without a flow to the draws of a sweep's runs, into baselines.csv; the report shows them.",
    folders=f"{RUNS}; what its baselines.csv lacks is fitted",
    options={
        "workers=N": "fits at a time, each in a process of its own; one per core if not given",
        "target=FILE.py:NAME": "the source of a target of your own, as data.target has it; several with commas. It is "
        "executed",
    },
    examples=[
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00 workers=1",
    ],
)

EXPORT = Usage(
    command="nfexp-export",
    purpose="""Write the curves and metrics of finished runs where TensorBoard or MLflow reads them: the folder
`tensorboard`, or the data base `mlflow.db`. Nothing is sent anywhere.""",
    folders=RUNS,
    options={
        "to=tensorboard|mlflow": "for which of them; required (--to mlflow is understood too)",
        "out=PATH": "the folder that gets it: DIR itself if not given; needed for several folders",
    },
    required=["to"],
    examples=[
        "nfexp-export outputs/sweeps/ablations/2026-01-31_12-00-00 to=tensorboard",
        "nfexp-export outputs/sweeps/ablations outputs/sweeps/blog to=mlflow out=both",
    ],
)

DOCTOR = Usage(
    command="nfexp-doctor",
    purpose="""Say what there is on this machine: versions, device, threads, the fused kernel and its cache, launchers,
trackers, memory and disk. Lines that begin with ! want a look; nothing is trained or written.""",
    folders="",
    examples=[
        "nfexp-doctor | grep '^!'",
        "nfexp-doctor > report.txt  # to be part of a bug report",
    ],
)
