"""How the service listens."""

from __future__ import annotations

import asyncio

from tornado.httpserver import HTTPServer
from tornado.web import Application

from hubguard import app
from hubguard.place import Place
from hubguard.staging.hub import free_ports


async def test_it_listens_on_bind_ip_if_the_host_of_its_url_is_a_name_of_another_place():
    (port,) = free_ports(1)
    place = Place("http://127.0.0.1:9/hub/api", "token", url=f"http://hubguard.invalid:{port}")
    server = HTTPServer(Application())
    try:
        await asyncio.wait_for(app._bind(server, place, "127.0.0.1"), timeout=5)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    finally:
        server.stop()


async def test_without_bind_ip_it_listens_on_the_host_of_its_url():
    (port,) = free_ports(1)
    server = HTTPServer(Application())
    try:
        place = Place("http://127.0.0.1:9/hub/api", "token", url=f"http://127.0.0.2:{port}")
        await asyncio.wait_for(app._bind(server, place, ""), timeout=5)
        _, writer = await asyncio.open_connection("127.0.0.2", port)
        writer.close()
    finally:
        server.stop()


def test_a_start_that_the_hub_still_gives_time_is_never_stuck():
    def limit_s(start_s: object, **cull: object) -> float:
        registration = {"spawner": {"start_s": start_s}, "sections": {"HubGuardCull": cull}}
        place = Place("http://127.0.0.1:8081/hub/api", "token", registration=registration)
        settings, _ = app.settings_for(place, None)
        assert settings.errors == ()
        return settings.cull.pending_limit_s

    assert limit_s(7230) == 7230
    assert limit_s(7230, pending_limit_s=600.0) == 7230
    assert limit_s(7230, pending_limit_s=9000.0) == 9000
    assert limit_s(10 * 86400) == 86400
    assert limit_s(90) == limit_s(None) == 1800
