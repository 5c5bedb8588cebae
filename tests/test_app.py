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
