"""python -m reproduction take STUDY DIR… | docs | worst RUN.

`take` stores the runs of a study as docs/reproduction/STUDY.csv.gz, what its layers did as STUDY_layers.csv, the
baselines beside them as baselines.csv, and draws the pictures that need more than tables (point clouds, densities,
walks, animations) from what the runs recorded; `docs` writes the tables and all other pictures of the page anew from
these files alone. `worst` names the test points on which a run loses most.
"""

from __future__ import annotations

import argparse

from reproduction import PAGE, STUDIES
from reproduction.page import draw, refreshed
from reproduction.taking import take
from reproduction.worst import worst


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m reproduction", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    taking = commands.add_parser("take")
    taking.add_argument("study", choices=[*STUDIES])
    taking.add_argument("dirs", nargs="+")
    commands.add_parser("docs")
    commands.add_parser("worst").add_argument("run")
    arguments = parser.parse_args()
    match arguments.what:
        case "take":
            take(arguments.study, arguments.dirs)
        case "docs":
            PAGE.write_text(refreshed(PAGE.read_text()))
            draw()
        case "worst":
            print(worst(arguments.run))


if __name__ == "__main__":
    main()
