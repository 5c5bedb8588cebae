"""The package list in setup.cfg is written by hand: setuptools can't find its mapped folders. So it must be whole."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def listed() -> set[str]:
    return set(SETUP["options"]["packages"].split())


def test_every_package_in_the_tree_is_listed_and_nothing_else():
    in_tree = {".".join(folder.parent.relative_to(ROOT).parts) for folder in (ROOT / "hubguard").rglob("__init__.py")}
    mapped = {"hubguard.migrations", "hubguard.migrations.versions", "hubguard.config_d"}
    assert listed() == in_tree | mapped


def test_every_listed_package_is_found():
    assert [name for name in listed() if find_spec(name) is None] == []


@pytest.mark.contract
def test_every_module_is_imported_without_a_warning():
    code = (
        "import importlib, pkgutil, hubguard\n"
        "for module in pkgutil.walk_packages(hubguard.__path__, 'hubguard.'):\n"
        "    if not module.name.endswith('.__main__'): importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_that_are_not_python_are_package_data():
    data = SETUP["options.package_data"]
    for package, folder in {"hubguard": "hubguard", "hubguard.migrations": "migrations"}.items():
        patterns = data[package].split()
        matched = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
        there = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
        assert there <= matched, there - matched


def test_dependencies_have_lower_bounds_and_no_upper_ones():
    requirements = SETUP["options"]["install_requires"].split()
    assert all(">=" in one for one in requirements), requirements
    assert not any("<" in one or "==" in one for one in requirements), requirements


def test_an_environment_that_was_left_half_made_is_mended(tmp_path: Path):
    """Without Debian's python3-venv, Python leaves one without pip; the next `make demo` then failed for ever."""
    half = tmp_path / "venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.write_text("#!/bin/sh\nexit 1\n")
    half.chmod(0o755)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] && {{ echo "made $3"; exit 7; }}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / ".ci" / "setup"), str(tmp_path / "venv")],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"made {tmp_path / 'venv'}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 7
