"""The documentation site: every key has a meaning, every page a place, and what is generated is whole."""

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from documentation import keys
from documentation.__main__ import GENERATED, gather
from nfexp.analysis.claims.catalogue import CLAIMS
from nfexp.configuration import CONTROLS
from nfexp.spec import Spec

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def every_key():
    found = [key for _, own in keys.spec_keys() for key in own]
    return found + keys.control_keys() + keys.hydra_keys("hydra.sweeper") + keys.hydra_keys("hydra.launcher")


@pytest.mark.parametrize("key", every_key(), ids=lambda key: key.name)
def test_every_key_has_a_meaning(key):
    assert key.meaning, (
        f"say what {key.name} means in {key.place}, or, if no file of conf/ holds it, as its meaning in spec/schema.py"
    )


def test_the_page_has_every_key_of_the_schema():
    page = keys.page()
    for group, cls in get_type_hints(Spec).items():
        names = [f"{group}.{field.name}" for field in fields(cls)] if is_dataclass(cls) else [group]
        for name in [*names, *CONTROLS]:
            assert f"| `{name}` |" in page, name


def test_the_page_says_type_range_and_default():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", keys.page(), re.M))
    assert rows["train.lr"].startswith("number above 0 to 1000 | `0.01` |")
    assert rows["train.batch_size"].startswith("whole number from 2 to 1e7, or `full` | `64` |")
    assert rows["flow.coupling"].startswith("`affine`, `additive` | `affine` |")
    assert rows["data.val_share"].startswith("number above 0 to 0.9, or `null` | `null (0.1 of a table)` |")


def test_values_are_those_of_the_yaml():
    for name in ("flow/realnvp.yaml", "train/default.yaml", "record/full.yaml"):
        read = yaml.safe_load((keys.CONF / name).read_text(encoding="utf-8"))
        for key, line in keys.written(keys.CONF / name).items():
            assert yaml.safe_load(line.value) == read[key], f"{name}: {key}"


def test_every_claim_is_in_the_catalogue():
    page = GENERATED["catalogue.md"]()
    for claim in CLAIMS:
        assert f"## {claim.id}: {claim.sentence}" in page and claim.estimand in page


def test_links_of_the_gathered_pages_lead_somewhere(tmp_path):
    gather(tmp_path / "pages")
    for page in (tmp_path / "pages").rglob("*.md"):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_menu_names_every_page(tmp_path):
    gather(tmp_path / "pages")
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"\S+\.md", menu))
    there = {page.relative_to(tmp_path / "pages").as_posix() for page in (tmp_path / "pages").rglob("*.md")}
    assert named == there


@pytest.mark.skipif(importlib.util.find_spec("griffe") is None, reason="pip install 'nfexp[docs]'")
def test_docstrings_become_markdown():
    from documentation.docstrings import as_markdown

    shown = as_markdown("See :func:`f`.\n\n>>> 1 + 1\n2\n\nMore.")
    assert shown == "See `f`.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="pip install 'nfexp[docs]'")
def test_a_page_with_a_broken_link_is_refused(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A\n\n[b](b.md)\n")
    shutil.copyfile(ROOT / "docs/site.css", tmp_path / "docs/site.css")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\nvalidation: {links: {not_found: warn}}\n")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0
