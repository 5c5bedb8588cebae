"""Where a service finds itself, by its environment."""

from __future__ import annotations

import pytest

from hubguard.place import place_from


@pytest.mark.parametrize(
    ("api_url", "told", "base_url"),
    [
        ("http://127.0.0.1:8081/hub/api", None, "/"),
        ("http://127.0.0.1:8081/lab/hub/api/", None, "/lab/"),
        ("http://127.0.0.1:8081/api", None, "/"),
        ("http://127.0.0.1:8081/lab/hub/api", "/other/", "/other/"),
    ],
)
def test_a_service_of_its_own_is_found_below_the_hubs_base_url(api_url: str, told: str | None, base_url: str):
    environ = {"JUPYTERHUB_API_TOKEN": "x", "JUPYTERHUB_API_URL": api_url}
    place = place_from(environ | ({"JUPYTERHUB_BASE_URL": told} if told else {}))
    assert place.prefix == f"{base_url}services/hubguard/"
