"""jupyterhub-idle-culler as PyPI has it, in both generations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE = "1.4.0"
TWO = "2.0.0"

FOLDER = Path(sys.prefix) / "hubguard-peers"
"""Where they are kept from run to run."""


def peer(version: str) -> Path:
    """The folder with that culler in it, fetched from PyPI once; skips where it can't be had."""
    there = FOLDER / version
    if not (there / "jupyterhub_idle_culler").is_dir():
        fetched = FOLDER / f"{version}.{os.getpid()}"
        wanted = [
            f"jupyterhub-idle-culler=={version}",
            "--no-deps",
            "--no-compile",
            "--quiet",
            "--target",
            str(fetched),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *wanted], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"jupyterhub-idle-culler {version} can't be had: {done.stderr.strip()[-300:]}")
        try:
            fetched.rename(there)
        except OSError:
            assert (there / "jupyterhub_idle_culler").is_dir()  # another test run was quicker
    return there
