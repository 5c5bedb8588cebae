"""The vendored htmx is byte for byte what its package on the registry has, and the page asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import pytest

STATIC = resources.files("hubguard") / "static"
MANIFEST: dict[str, Any] = json.loads((STATIC / "htmx.manifest.json").read_text())


@pytest.mark.parametrize("name", sorted(MANIFEST["files"]))
def test_a_vendored_file_is_what_the_manifest_says(name: str) -> None:
    told, content = MANIFEST["files"][name], (STATIC / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == told["sha256"]
    if name.endswith(".js"):
        assert "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode() == told["integrity"]


def test_every_minified_script_is_in_the_manifest() -> None:
    assert {file.name for file in STATIC.iterdir() if ".min." in file.name} <= set(MANIFEST["files"])


def test_the_manifest_says_where_it_is_from_and_under_which_licence() -> None:
    assert (MANIFEST["package"], MANIFEST["version"], MANIFEST["license"]) == ("htmx.org", "4.0.1", "0BSD")
    assert MANIFEST["registry"].endswith(f"/htmx.org-{MANIFEST['version']}.tgz")
    assert MANIFEST["package_integrity"].startswith("sha512-")
    assert "Zero-Clause BSD" in (STATIC / "htmx.LICENSE").read_text()
