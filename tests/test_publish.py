"""What is published is what the repository has: the archives' files and metadata, the citation, the changelog."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from functools import reduce

import pytest
import yaml

import customops

from . import matrix, publish
from .conftest import MODE
from .publish import ROOT

pytestmark = [
    pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once"),
    pytest.mark.xdist_group("publish"),  # it is built once
]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
STRAY = (
    "customops/__pycache__/exp.pyc",
    "docs/.ipynb_checkpoints/page.md",
    "build/lib/customops/old.py",
    "tests/.DS_Store",
)
ADDRESS = re.compile(r"https?://(?!doi\.org|packaging\.python\.org|citation-file-format\.github\.io)[\w.-]+")


@pytest.fixture(scope="module")
def files():
    """Return the paths of all files of the project."""
    if not (ROOT / ".git").exists():
        pytest.skip("git alone knows which files are the project's")
    return publish.tracked()


@pytest.fixture(scope="module")
def archives(files, tmp_path_factory):
    """Return sdist and wheel of a copy of the project that has files of other programs too."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    for name in STRAY:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("")
    return publish.build(source, built)


@pytest.fixture(scope="module")
def metadata(archives):
    """Return the metadata of the wheel."""
    with zipfile.ZipFile(archives[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_source_archive_has_all_files_and_no_others(files, archives):
    assert publish.names_in_sdist(archives[0]) == publish.wanted_in_sdist(files)


def test_the_wheel_has_every_file_of_the_package_and_no_others(files, archives):
    """A package that the list of pyproject.toml lacks is missing here; the marker of types is one of the files."""
    names = publish.names_in_wheel(archives[1])
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert names - about == publish.wanted_in_wheel(files)
    assert "customops/py.typed" in names
    assert {name.partition("/")[2] for name in about} >= {"METADATA", "RECORD", "licenses/LICENSE"}


def test_the_metadata_are_those_of_the_project(metadata):
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == customops.__version__
    assert metadata["License-Expression"] == PROJECT["license"] == CITATION["license"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {*metadata.get_all("Classifier")} == {*PROJECT["classifiers"]}
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.split(r"[>=;]", line)[0] for line in required} == {"torch", "triton", "numpy"}


def test_an_index_of_packages_will_take_the_archives(archives):
    command = [sys.executable, "-m", "twine", "check", "--strict", *archives]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2


def test_a_package_that_is_not_listed_is_missed(files):
    """The test above fails for one: here is what it would compare."""
    assert "customops/new/part.py" in publish.wanted_in_wheel([*files, "customops/new/part.py"])
    assert "customops/triton_kernels/part.py" in publish.wanted_in_wheel(["triton_kernels/part.py"])
    assert publish.wanted_in_sdist([".ci/run", "docs/page.md"]) == {"docs/page.md"}


def test_the_citation_is_of_this_version():
    assert citation_faults(CITATION) == []
    assert CITATION["version"] == customops.__version__
    (author,) = CITATION["authors"]
    assert author["name"] in (ROOT / "LICENSE").read_text()


CITATION_FAULTS = {
    "message": None,
    "authors": [],
    "cff-version": "2.0",
    "type": "program",
    "date-released": "November",
    "licence": "MIT",
}


@pytest.mark.parametrize("key", CITATION_FAULTS)
def test_each_fault_of_a_citation_is_seen(key):
    assert citation_faults({**CITATION, key: CITATION_FAULTS[key]})


def test_the_changelog_begins_with_this_version_and_says_when():
    titles = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    version, when = re.fullmatch(r"(\S+) \((unreleased|\d{4}-\d\d-\d\d)\)", titles[0]).groups()
    assert version == customops.__version__
    assert when == str(CITATION.get("date-released", "unreleased"))
    assert len({*titles}) == len(titles)


def test_names_of_the_changelog_are_public():
    names = {*re.findall(r"`(?:customops|ops)\.([\w.]+)", CHANGELOG)}
    assert len(names) >= 10
    for name in names:
        reduce(getattr, name.split("."), customops)


def test_no_address_is_given_before_there_is_one():
    """With a public home, `project.urls` name it; until then nobody is sent anywhere."""
    texts = {name: (ROOT / name).read_text() for name in ("CITATION.cff", "SECURITY.md", "CHANGELOG.md", "README.md")}
    hosts = {address for text in texts.values() for address in ADDRESS.findall(text)}
    assert hosts <= {*map(str, PROJECT.get("urls", {}).values())}


def test_each_version_of_python_that_is_named_is_one_that_was_tried():
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert named == {row["Python"].rpartition(".")[0] for row in matrix.load().values()}
    assert PROJECT["requires-python"] == f">={min(named)}"


def citation_faults(citation: dict) -> list[str]:
    """Return what the schema of the Citation File Format 1.2.0 refuses, of the keys that are used here."""
    known = {
        "cff-version": r"1\.2\.0",
        "message": ".+",
        "type": "software|dataset",
        "title": ".+",
        "abstract": ".+",
        "version": ".+",
        "license": "[A-Za-z0-9.-]+",
        "date-released": r"\d{4}-\d{2}-\d{2}",
        "repository-code": "https://.+",
        "url": "https://.+",
    }
    lists = {"authors": dict, "keywords": str}
    faults = [f"{key} is missing" for key in ("cff-version", "message", "title", "authors") if not citation.get(key)]
    for key, value in citation.items():
        if key in lists:
            if not value or not all(isinstance(item, lists[key]) and item for item in value):
                faults.append(f"{key}: {value}")
        elif key not in known or not re.fullmatch(known[key], str(value), re.DOTALL):
            faults.append(f"{key}: {value}")
    return faults
