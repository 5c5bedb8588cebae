"""Processes that a hub runs in place of HubGuard's, where it is the hub's part that is tried."""

from __future__ import annotations

TELLING = (
    "import json, os, pathlib, time;"
    " told = json.loads(os.environ['HUBGUARD_REGISTRATION']); told['pid'] = os.getpid();"
    " told['token'] = os.environ['JUPYTERHUB_API_TOKEN'];"
    " pathlib.Path('told.new').write_text(json.dumps(told)); os.replace('told.new', 'told.json'); time.sleep(600)"
)
"""A stand-in for the process that writes down what it was told, and then hangs."""


def stand_in(code: str = TELLING) -> str:
    """Config lines that let the hub run ``code`` in place of HubGuard's process."""
    return (
        "import sys\n"
        "_services = c.JupyterHub.services\n"
        "for _service in _services if isinstance(_services, list) else [*_services._prepend, *_services._extend]:\n"
        "    if _service['name'] == 'hubguard-process':\n"
        f"        _service['command'] = [sys.executable, '-c', {code!r}]\n"
    )
