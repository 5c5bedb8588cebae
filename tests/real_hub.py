"""The hubs that tests start."""

from __future__ import annotations

from real_proxy import node_proxy_command

from hubguard.staging.hub import TestbedHub


class RealHub(TestbedHub):
    """Skips the test where no hub can run, for want of Node or the hub's proxy."""

    async def __aenter__(self) -> TestbedHub:
        node_proxy_command()
        return await super().__aenter__()
