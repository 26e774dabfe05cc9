"""The arrays of a run's samples.npz: read without pickle, and only if they are small."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from nfexp.files import open_plain
from nfexp.record.formats import LIMITS, SAMPLES, ReportError

END = 22  # bytes of the end record of a zip without a comment, which stands last (APPNOTE 4.3.16)
# Bytes of the locator of a 64-bit directory, which would stand before it (APPNOTE 4.3.15).
LOCATOR = 20
LARGEST_DIRECTORY = 2**20  # bytes
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_arrays(
    run_dir: str | os.PathLike[str],
    *,
    only: Container[str] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a run's samples.npz, or those named in `only`; {} if it stored none.

    Only numbers and text are read, and nothing is unpacked before its declared size is known to be
    small.

    Raises
    ------
    ReportError
        If the file is not an archive of plain arrays.

    >>> load_arrays("/nowhere")
    {}
    """
    path = Path(run_dir) / SAMPLES
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        with open_plain(path, LIMITS[SAMPLES])[0] as file, _archive(file) as archive:
            chosen = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if only is None or name in only:
                    chosen[name] = member
            size = sum(member.file_size for member in chosen.values())
            if size > LIMITS[SAMPLES]:
                raise ValueError(f"{size:,} bytes unpacked (at most {LIMITS[SAMPLES]:,} are read)")
            return {name: _array(archive, member) for name, member in chosen.items()}
    except Exception as error:  # zip, zlib, header and memory errors of a file from elsewhere
        got = error or type(error).__name__
        raise ReportError(path, "an archive of plain arrays", got) from None


def _archive(file: Any) -> zipfile.ZipFile:
    """A zip as numpy writes it: a plain end record after a directory of at most a mebibyte.

    Python's zipfile reads the whole directory, however large the end record says that it is.
    """
    file.seek(-(LOCATOR + END), os.SEEK_END)
    locator = file.read(LOCATOR)
    end = file.read(END)
    size = int.from_bytes(end[12:16], "little")  # of the directory
    if locator.startswith(b"PK\6\7") or not end.startswith(b"PK\5\6") or size > LARGEST_DIRECTORY:
        raise ValueError("no archive, or one with a directory of unusual size")
    return zipfile.ZipFile(file)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = member.filename
    with archive.open(member) as file:
        read_header = HEADERS[np.lib.format.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
        # Objects (O) would be unpickled, V are records; numbers and text are plain bytes.
        if dtype.kind not in "fiuU" or len(shape) > 8 or min(shape, default=0) < 0:
            raise ValueError(f"{name}: dtype {dtype}, shape {shape}")
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size > member.file_size:
            raise ValueError(f"{name}: {size:,} bytes declared, {member.file_size:,} held")
        values = np.frombuffer(file.read(size), dtype=dtype, count=count)
    if dtype.kind == "U":
        # Text in numpy is UTF-32, and nothing has checked it.
        letters = values.view(dtype.str[0] + "u4")
        if letters.max(initial=0) > sys.maxunicode:
            raise ValueError(f"{name}: no text")
    return values.reshape(shape, order="F" if is_fortran else "C")
