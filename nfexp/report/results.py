"""The results at the centre of the study and along its axes, as the report's tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.analysis.table.baselines import ALL_MODELS, DATA, KERNELS, data_key
from nfexp.analysis.table.records import rows_of
from nfexp.report.selection import at_centre, has_truth, swept
from nfexp.report.words import TROUBLES, file_name, interval, number, plain, troubles
from nfexp.spec import is_parameter_key

CELL = 80  # letters of a value in a cell
FLOW = "flow"

Row = Mapping[str, Any]
Centres = Mapping[str, Row]  # the configuration at the centre of the study, by target
Fits = Mapping[tuple[Any, ...], pd.DataFrame]  # baselines by data_key


def fits_by_draws(fits: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The table of baselines in parts, one for all fits to draws of one kind (see `data_key`)."""
    if not len(fits):
        return {}
    keys = fits.apply(data_key, axis=1)
    return dict(iter(fits.groupby(keys)))


@dataclass(frozen=True, kw_only=True)
class CentreRow:
    """A flow at the centre of the study, or a baseline on the same draws; NLL and KL in nats.

    Of images `test_bpd` and `test_bpd_iw` are in bits/dim, as is `over`.
    """

    target: str
    model: str
    chosen: str = ""  # what the fit of a baseline chose, such as "12–13 components"
    kl: str
    over: str = ""  # KL of a baseline less KL of the flow
    test_nll: str
    true_nll: str
    clean_distance: str
    seconds: str
    n: int
    troubles: list[str]
    test_bpd: str = "–"
    test_bpd_iw: str = "–"


def centre_rows(runs: pd.DataFrame, centres: Centres, fits: Fits) -> list[CentreRow]:
    """Per target, the flow at the centre and its baselines: mean and 95% interval over seeds."""
    rows = []
    for name, of_target in at_centre(runs, centres).groupby("data.name"):
        target = str(name)
        completed = of_target[of_target["status"] == "completed"]
        measure = stats.measure_of(completed)
        rows.append(_flow_row(target, of_target, completed))
        fitted = fits.get(data_key(centres[target]))
        if fitted is not None:
            if measure == stats.BITS:
                fitted = in_bits(fitted, centres[target])
            score_by_seed = completed.set_index("seed")[measure]
            for reference in rows_of(stats.references(fitted, score_by_seed)):
                rows.append(_baseline_row(target, reference))
    return rows


def in_bits(fits: pd.DataFrame, run: Row) -> pd.DataFrame:
    """Baselines of images with the column test_bpd.

    Their NLL in bits/dim, for images as those of a run.
    """
    return fits.assign(**{stats.BITS: fits["test_nll"] / (float(run["data.dim"]) * math.log(2))})


def _flow_row(target: str, runs: pd.DataFrame, completed: pd.DataFrame) -> CentreRow:
    counts: dict[str, int] = {"n": len(completed)}
    for status in TROUBLES:
        counts[f"n_{status}"] = int((runs["status"] == status).sum())
    return CentreRow(
        target=target,
        model=FLOW,
        kl=_mean(completed["kl"]),
        test_nll=_mean(completed["test_nll"]),
        true_nll=number(completed["true_nll"].mean()),
        clean_distance=_mean(completed["clean_distance"]),
        seconds=number(completed["seconds"].mean()),
        n=len(completed),
        troubles=troubles(counts),
        test_bpd=_mean_if_there(completed, "test_bpd"),
        test_bpd_iw=_mean_if_there(completed, "test_bpd_iw"),
    )


def _mean_if_there(runs: pd.DataFrame, column: str) -> str:
    return _mean(runs[column]) if column in runs else "–"


def _mean(values: pd.Series) -> str:
    return interval(*stats.mean_interval(values.dropna().to_numpy(float)))


def _score(row: Row) -> str:
    """The mean KL with its interval or, where no KL is known, the test NLL; of images bits/dim."""
    bits = row.get("test_bpd_mean")
    if bits is not None and bits == bits:
        return _mean_of(row, "test_bpd")
    is_known = row["kl_mean"] == row["kl_mean"]
    return _mean_of(row, "kl" if is_known else "test_nll")


def measure_word(scores: pd.DataFrame) -> str:
    """What the scores of runs, or of cells of an ablation, are: "KL", "NLL", "KL or NLL".

    Of images "bits/dim".
    """
    if stats.has_bits(scores):
        return "bits/dim"
    if not has_truth(scores):
        nll = "test_nll" if "test_nll" in scores else "test_nll_mean"
        return "NLL" if scores[nll].notna().any() else "KL"
    column = "kl" if "kl" in scores else "kl_mean"
    scored = scores[scores["test_nll" if column == "kl" else "test_nll_mean"].notna()]
    return "KL" if scored[column].notna().all() else "KL or NLL"


def _mean_of(reference: Row, name: str) -> str:
    """A mean with its interval, from a row of baselines or of an ablation."""
    return interval(reference[f"{name}_mean"], reference[f"{name}_low"], reference[f"{name}_high"])


def _baseline_row(target: str, reference: Row) -> CentreRow:
    sign = "+" if reference["over_mean"] > 0 else ""
    return CentreRow(
        target=target,
        model=ALL_MODELS[reference["model"]],
        chosen=_chosen(reference),
        kl=_mean_of(reference, "kl"),
        over=sign + _mean_of(reference, "over"),
        test_nll=_mean_of(reference, "test_nll"),
        true_nll=number(reference["true_nll_mean"]),
        clean_distance="–",
        seconds=number(reference["seconds_mean"]),
        n=reference["n"],
        troubles=[],
        test_bpd=_mean_of(reference, "test_bpd") if "test_bpd_mean" in reference else "–",
    )


def _chosen(reference: Row) -> str:
    """What the fits of a baseline chose, over the seeds, such as "12–13 components"."""
    least = reference["least"]
    most = reference["most"]
    if reference["model"] in ("mixture", "mixture_val"):
        return f"{_range(f'{least:.0f}', f'{most:.0f}')} components"
    if reference["model"] in KERNELS:
        return f"bandwidth {_range(f'{least:.2g}', f'{most:.2g}')} sd"
    return ""


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least}–{most}"


@dataclass(frozen=True)
class Cell:
    """The runs of one target at one swept value."""

    kl: str  # or the test NLL, where no KL is known
    diff: str  # from that at the centre
    n: int
    troubles: list[str]
    centre: bool


@dataclass(frozen=True)
class TableLine:
    """A line of an ablation: a swept value, or a baseline on the draws of the lines above it."""

    values: list[str]
    cells: list[Cell | None]  # by target; None where the sweep has no such runs
    centre: bool
    baseline: bool


@dataclass(frozen=True)
class AblationTable:
    """One axis of the study: a line per swept value, a cell per target."""

    axis: str
    columns: list[str]
    targets: list[str]
    lines: list[TableLine]
    file: str
    measure: str  # KL or NLL


def ablation_table(
    axis: str,
    ablation: pd.DataFrame,
    centres: Centres,
    fits: Fits,
) -> AblationTable:
    """One table of :func:`nfexp.analysis.statistics.ablations` as text.

    The baselines stand below the last line with the same sample count and noise.
    """
    columns = swept(ablation)
    targets = list(dict.fromkeys(ablation["data.name"]))
    numeric = [column for column in columns if pd.api.types.is_numeric_dtype(ablation[column])]
    if numeric:
        ablation = ablation.sort_values(numeric, kind="stable")
    by_value: dict[tuple[str, ...], dict[str, Row]] = {}  # the row of each target
    for row in rows_of(ablation):
        value = tuple(plain(row[column]) for column in columns)
        by_value.setdefault(value, {})[row["data.name"]] = row
    last_of_draws = {}
    for value, rows in by_value.items():
        draws = _draws(rows, columns)
        last_of_draws[tuple(draws.values())] = value
    measure = measure_word(ablation)
    lines = []
    for value, rows in by_value.items():
        values = [table.printable(text, CELL) for text in value]
        lines.append(_value_line(values, rows, targets))
        draws = _draws(rows, columns)
        if fits and last_of_draws[tuple(draws.values())] == value:
            of_targets = []
            for target in targets:
                configuration = {**centres[target], **draws}
                fit = fits.get(data_key(configuration))
                if fit is not None and measure == "bits/dim":
                    fit = in_bits(fit, configuration)
                of_targets.append(fit)
            lines += _baseline_lines(columns, values, of_targets)
    return AblationTable(axis, columns, targets, lines, file_name(axis), measure)


def _draws(rows: Mapping[str, Row], columns: Sequence[str]) -> dict[str, Any]:
    """The swept settings that fix the draws, such as the sample count, with their values."""
    row = next(iter(rows.values()))  # these values are the same for every target
    return {column: row[column] for column in columns if column in DATA or is_parameter_key(column)}


def _value_line(values: list[str], rows: Mapping[str, Row], targets: Sequence[str]) -> TableLine:
    cells: list[Cell | None] = []
    is_centre = False
    for target in targets:
        if target not in rows:
            cells.append(None)
            continue
        cell = _cell(rows[target])
        cells.append(cell)
        is_centre = is_centre or cell.centre
    return TableLine(values, cells, centre=is_centre, baseline=False)


def _cell(row: Row) -> Cell:
    diff = interval(row["kl_diff_mean"], row["kl_diff_low"], row["kl_diff_high"])
    if row["is_centre"] or diff == "–":
        diff = ""
    elif not diff.startswith("-"):
        diff = f"+{diff}"
    return Cell(
        kl=_score(row),
        diff=diff,
        n=int(row["n"]),
        troubles=troubles(row),
        centre=bool(row["is_centre"]),
    )


def _baseline_lines(
    columns: Sequence[str], values: Sequence[str], of_targets: Sequence[pd.DataFrame | None]
) -> list[TableLine]:
    """A line per model that was fitted, from the fits of each target."""
    cells: dict[str, list[Cell | None]] = {model: [None] * len(of_targets) for model in ALL_MODELS}
    for i, fits in enumerate(of_targets):
        if fits is None:
            continue
        for reference in rows_of(stats.references(fits)):
            cell = Cell(_score(reference), "", reference["n"], [], centre=False)
            cells[reference["model"]][i] = cell
    lines = []
    for model, name in ALL_MODELS.items():
        if any(cells[model]):
            named = _named(columns, values, name)
            lines.append(TableLine(named, cells[model], centre=False, baseline=True))
    return lines


def _named(columns: Sequence[str], values: Sequence[str], model: str) -> list[str]:
    """The first cells of a baseline's line: the values that fix its draws, and its name.

    The name stands in a column that does not matter to the draws, if there is one, else beside the
    first value.
    """
    free = [i for i, column in enumerate(columns) if column not in DATA]
    position = free[0] if free else 0
    shown = list(values)
    for i in free:
        shown[i] = ""
    shown[position] = f"{shown[position]}, {model}" if shown[position] else model
    return shown
