"""``pip install .`` brings the two packages and nothing else, and its commands run where nothing of the tree can be imported.

The one job: build the wheel as a release does, install it, run its three commands. Not done here: an index of packages, whose
place the environment of the tests takes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import enginehouse_engine
import enginehouse_operator
from tracked_files import ROOT, tracked

DEADLINE_SECONDS = 120


def run(*command: str | Path, **environment: str) -> str:
    """What it says, with nothing of this process' environment."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the tracked files, as a release is."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for file in tracked():
        place = copy / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", target, copy)
    (built,) = target.iterdir()
    return built


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def description(wheel: Path) -> metadata.Distribution:
    name, version = wheel.name.split("-")[:2]
    return metadata.PathDistribution(zipfile.Path(wheel, f"{name}-{version}.dist-info/"))


def packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/*/site-packages")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the packages that it needs without an extra; pip says so when one is not there."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    for requirement in description(wheel).requires or ():
        if "extra ==" not in requirement:
            needed = metadata.distribution(re.split(r"[^\w-]", requirement)[0])
            for name in {file.parts[0] for file in needed.files or ()}:
                (packages(environment) / name).symlink_to(str(needed.locate_file(name)))
    pip("--python", environment / "bin/python", "install", "--no-index", wheel)
    return environment


def test_the_wheel_has_the_files_of_the_two_packages_and_no_others(wheel: Path) -> None:
    product = tracked("operator", "engine_image")
    assert files(wheel) == {"/".join(file.relative_to(ROOT).parts[1:]) for file in product}


def test_the_wheel_has_the_version_of_both_packages_and_the_extras_of_the_pages(wheel: Path) -> None:
    said = description(wheel)
    assert said.name == "enginehouse"
    assert said.version == enginehouse_operator.__version__ == enginehouse_engine.__version__
    assert {"operator", "engine", "ray"} <= set(said.metadata.get_all("Provides-Extra") or ())


def test_the_plugin_runs_with_what_is_installed_without_an_extra(installed: Path) -> None:
    assert run(installed / "bin/kubectl-enginehouse", "--help").startswith("usage: kubectl enginehouse ")


@pytest.mark.parametrize("name", ["enginehouse-operator", "enginehouse-engine"])
def test_operator_and_engine_run_from_what_is_installed(installed: Path, name: str) -> None:
    # First what is installed, then what an extra brings.
    path = os.pathsep.join([str(packages(installed)), sysconfig.get_path("purelib")])
    assert run(installed / "bin" / name, "--help", PYTHONPATH=path).startswith(f"usage: {name} ")
