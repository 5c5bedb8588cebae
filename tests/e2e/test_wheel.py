from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `python -m build` does, from a copy so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_carries_migrations_templates_static_files_and_the_snippet(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"hubguard/{path.relative_to(ROOT / 'hubguard')}"
        for folder in ("templates", "static")
        for path in (ROOT / "hubguard" / folder).rglob("*")
        if path.is_file()
    }
    expected |= {
        f"hubguard/migrations/{path.relative_to(ROOT / 'migrations')}" for path in (ROOT / "migrations").rglob("*.py")
    }
    expected |= {"hubguard/migrations/script.py.mako", "hubguard/config_d/hubguard.py", "hubguard/py.typed"}
    assert expected - names == set()
    assert not [name for name in names if name.startswith(("tests", "bench"))]


async def test_the_service_starts_from_the_wheel_in_a_fresh_environment(wheel: Path, tmp_path: Path):
    """A fresh virtual environment that sees this one's dependencies, but neither the checkout nor its editable install."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    packages = next((home / "lib").glob("python*/site-packages"))
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(here + "\n")
    # .pth files in the folder named there aren't read, so that the editable install of the checkout stays out of it.
    where = subprocess.run(
        [python, "-c", "import hubguard; print(hubguard.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    assert where.startswith(str(home)), where

    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(python), "-m", "hubguard", "serve", "--url", f"http://127.0.0.1:{free_port()}",
            cwd=tmp_path, stderr=log, stdout=log,
            env={**os.environ, "JUPYTERHUB_API_TOKEN": "not-a-real-token", "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api"},
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{ports[-1]}/services/hubguard/health/live"
        async with aiohttp.ClientSession() as session:
            for _ in range(100):
                try:
                    async with session.get(url) as answer:
                        assert answer.status == 200
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.2)
            else:
                pytest.fail((tmp_path / "log").read_text())
            async with session.get(url.replace("/health/live", "/static/htmx.min.js")) as answer:
                assert answer.status == 200
        for _ in range(50):
            if (tmp_path / "hubguard.sqlite").exists():
                break
            await asyncio.sleep(0.2)
        assert (tmp_path / "hubguard.sqlite").exists(), (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0, (tmp_path / "log").read_text()


ports: list[int] = []


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ports.append(probe.getsockname()[1])
    return ports[-1]
