"""The other generated pages: the catalogue of claims, the commands, the interface from Python."""

from __future__ import annotations

import nfexp
from nfexp import usages
from nfexp.analysis.claims.catalogue import CLAIMS
from nfexp.analysis.claims.images import IMAGE_CLAIMS

KINDS = {"above": "above the margin", "below": "below the margin", "within": "within ± the margin"}
QUANTIFIERS = {"every": "on every target", "most": "on most targets", "some": "on some target"}
# What scripts may use beside the names of `nfexp` itself
FURTHER = {
    "Records and tables": ["nfexp.analysis.table.collect", "nfexp.analysis.table.load_histories"],
    "Statistics": ["nfexp.analysis.statistics.ablations", "nfexp.analysis.claims.evaluate"],
    "Data and flows": [
        "nfexp.data.load",
        "nfexp.flows.flow_stack",
        "nfexp.flows.stack",
        "nfexp.flows.layer",
        "nfexp.flows.layers",
        "nfexp.flows.bases",
    ],
    "Training and scores": [
        "nfexp.run.run_stack",
        "nfexp.train.begin",
        "nfexp.train.advance",
        "nfexp.train.finish",
    ],
    "The schema": [
        "nfexp.spec.schema",
        "nfexp.spec.parameters",
        "nfexp.spec.mapping",
        "nfexp.spec.identity",
        "nfexp.spec.shapes",
        "nfexp.spec.checks",
        "nfexp.spec.errors",
    ],
}


def claims_page() -> str:
    """Every claim: its sentence, what is measured, the margin with its reason."""
    parts = [
        "# Catalogue of claims",
        "The sentences of the sources that a report judges, and those about images. Generated from `catalogue.py` and "
        "`images.py` in `nfexp/analysis/claims/`; [how a claim gets its verdict](claims.md).",
    ]
    for claim in (*CLAIMS, *IMAGE_CLAIMS):
        unit = "" if claim.about_divergence else " (in the unit of what is measured)"
        rows = [
            f"## {claim.id}: {claim.sentence}",
            f"- Source: {claim.source}",
            f"- Measured: {claim.estimand}",
            f"- Holds if it is {KINDS[claim.kind]} of {claim.margin:g}{unit}, {QUANTIFIERS[claim.quantifier]}",
            f"- Why this margin: {claim.why}",
        ]
        parts.append(rows[0] + "\n\n" + "\n".join(rows[1:]))
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """What each command says of itself with --help."""
    said = [usages.RESUME, usages.REPORT, usages.PLOT, usages.BASELINES]
    parts = [
        "# Commands",
        "`nfexp` trains: one run, or with `-m` a sweep ([sweeps](sweeps.md), [keys](keys.md)); `nfexp --help` lists "
        "its groups. The other commands read what was trained. This page is what they print with `--help`.",
    ]
    for usage in said:
        parts += [f"## {usage.command}", f"```text\n{usage.text()}\n```"]
    return "\n\n".join(parts) + "\n"


def interface_page() -> str:
    """The functions and classes for scripts and notebooks, from their docstrings."""
    parts = [
        "# From Python",
        "Generated from the docstrings. `import nfexp` brings the names of the first part.",
    ]
    parts.append("## nfexp")
    for name in nfexp.__all__:
        parts.append(f"::: {nfexp._HOMES[name]}.{name}\n    options:\n      heading_level: 3")
    for heading, names in FURTHER.items():
        parts.append(f"## {heading}")
        for name in names:
            parts.append(f"::: {name}\n    options:\n      heading_level: 3")
    return "\n\n".join(parts) + "\n"
