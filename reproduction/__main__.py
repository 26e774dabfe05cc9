"""python -m reproduction take STUDY DIR… | docs | worst RUN.

`take` stores the runs of a study as docs/reproduction/STUDY.csv.gz, what its layers did as STUDY_layers.csv, the
baselines beside them as baselines.csv, and draws the pictures that need more than tables (point clouds, densities,
walks, animations) from what the runs recorded; `docs` writes the tables, claims.csv and all other pictures of the
page anew from these files alone. Studies of images are kept in docs/images/, and their page is docs/images.md.
`worst` names the test points on which a run loses most.
"""

from __future__ import annotations

import argparse

from nfexp.analysis.table import write_csv
from reproduction import CLAIMS, DATA, OF_IMAGES, PAGE, STUDIES, load
from reproduction.blocks import VERDICTS, with_verdicts
from reproduction.images import IMAGE_BLOCKS, IMAGES_DATA, IMAGES_PAGE, IMAGES_PICTURES
from reproduction.page import draw, refreshed
from reproduction.taking import take
from reproduction.worst import worst


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m reproduction",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="what", required=True)
    taking = commands.add_parser("take")
    taking.add_argument("study", choices=[*STUDIES, *OF_IMAGES])
    taking.add_argument("dirs", nargs="+")
    commands.add_parser("docs")
    commands.add_parser("worst").add_argument("run")
    arguments = parser.parse_args()
    match arguments.what:
        case "take":
            if arguments.study in OF_IMAGES:
                take(arguments.study, arguments.dirs, IMAGES_DATA, IMAGES_PICTURES)
            else:
                take(arguments.study, arguments.dirs)
        case "docs":
            frames, centres = load()
            frames = with_verdicts(frames, centres)
            PAGE.write_text(refreshed(PAGE.read_text(), frames, centres))
            write_csv(frames[VERDICTS], DATA / CLAIMS)
            of_images = load(IMAGES_DATA)
            IMAGES_PAGE.write_text(refreshed(IMAGES_PAGE.read_text(), *of_images, IMAGE_BLOCKS))
            draw(frames, centres)
        case "worst":
            print(worst(arguments.run))


if __name__ == "__main__":
    main()
