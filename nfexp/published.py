"""The field's standard tables in the preprocessing of MAF: POWER, GAS, HEPMASS, and so on.

They are read from the files that Papamakarios, Pavlakou and Murray published with "Masked
autoregressive flow for density estimation", 2017 (https://zenodo.org/records/1161203,
data.tar.gz), and divided as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nfexp.spec import SpecError, Words

PLACE = "https://zenodo.org/records/1161203"
SHARE = 0.1  # of the rows for the test, and of the others for validation
MOST_REPEATS = 5  # of a column's smallest value, in HEPMASS
TOO_ALIKE = 0.98  # correlation of two columns, in GAS


@dataclass(frozen=True, eq=False)
class Parts:
    """Training, validation and test rows, each (N, D) in float64."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Rows of each part, and columns."""
        return len(self.train), len(self.val), len(self.test), self.train.shape[1]


# Rows for training, validation and test, and columns: table 1 of the paper and its appendix
SIZES = {
    "power": (1_659_917, 184_435, 204_928, 6),
    "gas": (852_174, 94_685, 105_206, 8),
    "hepmass": (315_123, 35_013, 174_987, 21),
    "miniboone": (29_556, 3_284, 3_648, 43),
    "bsds300": (1_000_000, 50_000, 250_000, 63),
}


def _last_share(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All but the last tenth of the rows, and that tenth."""
    n = int(SHARE * len(rows))
    return rows[: len(rows) - n], rows[len(rows) - n :]


def _divided(rows: np.ndarray) -> Parts:
    rest, test = _last_share(rows)
    train, val = _last_share(rest)
    return Parts(train, val, test)


def _standardised(parts: Parts) -> Parts:
    """Every part by the moments of the training and validation rows together, as published."""
    seen = np.concatenate([parts.train, parts.val])
    mean = seen.mean(0)
    sd = seen.std(0)
    return Parts((parts.train - mean) / sd, (parts.val - mean) / sd, (parts.test - mean) / sd)


def _power(files: list[Path]) -> Parts:
    """Household power: shuffled, without columns 1 and 3, with noise as wide as the rounding."""
    rng = np.random.RandomState(42)  # the published split and noise are its draws
    rows = np.array(np.load(files[0], allow_pickle=False))
    rng.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)
    n = len(rows)
    voltage = 0.01 * rng.rand(n, 1)
    gap = 0.001 * rng.rand(n, 1)
    meters = rng.rand(n, 3)
    noise = np.hstack([gap, voltage, meters, np.zeros((n, 1))])
    return _standardised(_divided(rows + noise))


# What a pickled table of numbers is made of; anything else that a pickle names is not called.
OF_A_FRAME = frozenset(
    {
        "DataFrame",
        "BlockManager",
        "_unpickle_block",
        "new_block",
        "make_block",
        "FloatBlock",
        "IntBlock",
        "Index",
        "_new_Index",
        "RangeIndex",
        "Int64Index",
        "StringArray",
        "StringDtype",
        "__pyx_unpickle_NDArrayBacked",
        "_reconstruct",
        "_frombuffer",
        "ndarray",
        "dtype",
        "slice",
        "encode",
    }
)
PACKAGES = ("pandas", "numpy", "builtins", "__builtin__", "_codecs")


def _unpickled(path: Path) -> Any:
    """The table in a pickle, which is loaded without calling what no table needs."""
    from pandas.compat import pickle_compat  # type: ignore[import-not-found]

    class Frame(pickle_compat.Unpickler):  # knows where old versions of pandas had their parts
        def find_class(self, module: str, name: str) -> Any:
            if module.partition(".")[0] not in PACKAGES or name not in OF_A_FRAME:
                raise ValueError(f"a table of numbers expected; got {module}.{name}")
            return super().find_class(module, name)

    with path.open("rb") as file:
        return Frame(file).load()


def _gas(files: list[Path]) -> Parts:
    """Gas sensors: without columns that nearly repeat another, standardised over all rows."""
    frame: Any = _unpickled(files[0]).drop(columns=["Meth", "Eth", "Time"])
    while True:
        alike = (frame.corr() > TOO_ALIKE).to_numpy().sum(axis=1)
        if not (alike > 1).any():
            break
        first = np.flatnonzero(alike > 1)[0]
        frame = frame.drop(columns=frame.columns[first])
    return _divided(((frame - frame.mean()) / frame.std()).to_numpy(dtype=np.float64))


def _hepmass(files: list[Path]) -> Parts:
    """Particle collisions of class 1, without columns whose smallest value comes often."""
    import pandas as pd

    train, test = (pd.read_csv(path, index_col=False) for path in files)
    train = train[train.iloc[:, 0] == 1].iloc[:, 1:]
    test = test[test.iloc[:, 0] == 1].iloc[:, 1:-1]  # its file has a column too many
    mean = train.mean().to_numpy()
    sd = train.std().to_numpy()
    train_rows = (train.to_numpy(dtype=np.float64) - mean) / sd
    test_rows = (test.to_numpy(dtype=np.float64) - mean) / sd
    repeats = (train_rows == train_rows.min(0)).sum(0)
    kept = repeats <= MOST_REPEATS
    rest, val = _last_share(train_rows[:, kept])
    return Parts(rest, val, test_rows[:, kept])


def _miniboone(files: list[Path]) -> Parts:
    return _standardised(_divided(np.load(files[0], allow_pickle=False).astype(np.float64)))


def _bsds300(files: list[Path]) -> Parts:
    try:
        import h5py
    except ImportError:
        raise SpecError(
            "data.path", "h5py to read BSDS300 (pip install 'nfexp[tables]')", str(files[0])
        ) from None
    with h5py.File(files[0], "r") as file:
        train, val, test = (
            np.asarray(file[part], dtype=np.float64) for part in ("train", "validation", "test")
        )
    return Parts(train, val, test)


@dataclass(frozen=True)
class Published:
    """Where a table lies below the folder, and how its parts are made."""

    files: tuple[str, ...]
    prepare: Callable[[list[Path]], Parts]


TABLES = {
    "power": Published(("power/data.npy",), _power),
    "gas": Published(("gas/ethylene_CO.pickle",), _gas),
    "hepmass": Published(("hepmass/1000_train.csv", "hepmass/1000_test.csv"), _hepmass),
    "miniboone": Published(("miniboone/data.npy",), _miniboone),
    "bsds300": Published(("BSDS300/BSDS300.hdf5",), _bsds300),
}


def read_published(name: str, folder: str) -> Parts:
    """A standard table from the folder that holds the published files; its sizes are checked.

    Raises
    ------
    SpecError
        For a table that is not one of these, a file that is missing, or other sizes.
    """
    if name not in TABLES:
        raise SpecError("data.name", f"one of {', '.join(TABLES)}", name)
    files = []
    for file in TABLES[name].files:
        path = Path(folder).expanduser() / file
        if not path.is_file():
            raise SpecError("data.path", f"a folder with {file}, from {PLACE}", folder)
        files.append(path)
    try:
        parts = TABLES[name].prepare(files)
    except SpecError:
        raise
    except Exception as error:  # of whatever lies there instead
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpecError("data.path", f"{files[0]} as published at {PLACE}", Words(said)) from None
    if parts.sizes != SIZES[name]:
        expected = "{:,}, {:,} and {:,} rows of {} columns".format(*SIZES[name])
        got = "{:,}, {:,} and {:,} rows of {}".format(*parts.sizes)
        raise SpecError(
            "data.path", f"{name} with {expected} (train, validation, test)", Words(got)
        )
    return parts
