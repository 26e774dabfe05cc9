"""A table as it stands in a file: CSV, TSV, Parquet, NPY or NPZ, told by the suffix. No torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfexp.spec import SpecError, Words, counted

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = {"csv": ",", "tsv": "\t"}


def suffix_of(path: str) -> str:
    """The kind of a file by its name, also where it is compressed.

    >>> suffix_of("points.CSV.gz")
    'csv'
    """
    return Path(path).name.lower().removesuffix(".gz").rpartition(".")[2]


def read_file(key: str, path: str, *, header: str = "auto") -> pd.DataFrame:
    """A table as it is in a file, whose suffix says how. Unnamed columns are numbered."""
    place = Path(path).expanduser()
    if not place.is_file():
        got = "a folder" if place.is_dir() else "nothing there"
        raise SpecError(key, "the path of a table", Words(f"{path}, {got}"))
    suffix = suffix_of(path)
    if suffix not in _READERS:
        raise SpecError(key, f"a file named {', '.join('.' + known for known in _READERS)}", path)
    try:
        return _READERS[suffix](key, str(place), header)
    except SpecError:
        raise
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, ImportError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpecError(
            key, f"a {suffix.upper()} file, as its name says", Words(f"{path}: {said}")
        ) from None


def _read_text(key: str, path: str, header: str) -> pd.DataFrame:
    """A table in text: separated by commas or tabs, with a first row of names or without."""
    import pandas as pd

    separator = SEPARATORS[suffix_of(path)]
    opened: dict[str, Any] = {
        "sep": separator,
        "skipinitialspace": True,
        "skip_blank_lines": True,
        "encoding": "utf-8-sig",
    }
    first = (
        pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **opened)
        .iloc[0]
        .tolist()
    )
    has_names = not all(_is_number(cell) for cell in first)
    named = header == "first_row" or (header == "auto" and has_names)
    if header == "none" and has_names:
        expected = f"numbers in the first row of {path}"
        raise SpecError("data.header", expected, Words(f"the names {', '.join(first)}"))
    if len(first) == 1 and re.search(r"[;|\t,]", first[0]):
        got = f"{first[0]!r:.80} in the first row of {path}"
        raise SpecError(key, f"values separated by {separator!r}", Words(got))
    if int(pd.__version__.split(".")[0]) < 3:
        opened["float_precision"] = "round_trip"  # later ones read every digit anyway
    frame = pd.read_csv(path, header=None, skiprows=1 if named else 0, **opened)
    if named and len(first) != len(frame.columns):
        got = f"{counted(len(first), 'name')}, {counted(len(frame.columns), 'column')}"
        raise SpecError(key, f"a name for each column of {path}", Words(got))
    frame.columns = pd.Index(first if named else [str(i) for i in range(len(frame.columns))])
    return frame


def _is_number(cell: str) -> bool:
    """Whether a cell is no name: a number, or a mark for one that is missing."""
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in ("", "na", "n/a", "null", "none", "?")
    return True


def _read_parquet(key: str, path: str, header: str) -> pd.DataFrame:
    import pandas as pd

    try:
        import pyarrow
    except ImportError:
        raise SpecError(
            key, "pyarrow to read Parquet (pip install 'nfexp[tables]'), or a CSV or NPY file", path
        ) from None
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return frame.rename(columns=str)


def _read_npy(key: str, path: str, header: str) -> pd.DataFrame:
    return _of_array(np.load(path, allow_pickle=False))


def _read_npz(key: str, path: str, header: str) -> pd.DataFrame:
    """The one array of an archive, or its arrays of one dimension as named columns."""
    import pandas as pd

    with np.load(path, allow_pickle=False) as archive:
        if not hasattr(archive, "files"):
            raise ValueError("a single array")
        arrays = {name: archive[name] for name in archive.files}
    if len(arrays) == 1:
        (only,) = arrays.values()
        return _of_array(only)
    shapes = [array.shape for array in arrays.values()]
    are_columns = len(set(shapes)) == 1 and len(shapes[0]) == 1
    if not are_columns:
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected one array, or columns of one length; got {got or 'none'}")
    return pd.DataFrame(arrays)


def _of_array(values: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    if values.ndim == 1 and values.dtype.names is None:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(
            f"expected rows and columns; got an array of shape {values.shape} and type {values.dtype}"
        )
    return pd.DataFrame(values, columns=[str(i) for i in range(values.shape[1])])


_READERS: dict[str, Callable[[str, str, str], Any]] = {
    "csv": _read_text,
    "tsv": _read_text,
    "parquet": _read_parquet,
    "npy": _read_npy,
    "npz": _read_npz,
}
