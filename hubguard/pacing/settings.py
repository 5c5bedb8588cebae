"""The settings of the budget."""

from __future__ import annotations

from traitlets import Float, Int

from hubguard.settings import Section


class HubGuardBudget(Section):
    """How fast HubGuard may talk to the hub, all its parts together."""

    rate = Float(
        40.0,
        help="""Requests to hub and proxy per second, sustained. A stop takes about three, each a few milliseconds of a hub's
        time. One fifth is reserved for verification and for people. Range: 0.1 to 1000.""",
    ).tag(config=True, low=0.1, high=1000.0)
    burst = Int(
        3,
        help="""Requests that may go out at once after a quiet spell. Few, so that stops are spread and nobody else at the hub
        waits behind a heap of them. A start isn't such a spell: HubGuard begins without a burst,
        so that one that is started again and again doesn't flood the hub. Range: 1 to 1000.""",
    ).tag(config=True, low=1, high=1000)
    concurrency = Int(
        10,
        help="""The most stops in flight. A fifth of that, one at least, comes on top for looking and verifying. HubGuard goes
        down by halves when the hub answers 429 or 5xx, not at all or ever more slowly (three times its usual time, and half
        a second more), and up by one when it is used and all is well. Range: 1 to 500.""",
    ).tag(config=True, low=1, high=500)
    request_timeout_s = Float(
        60.0,
        help="""Seconds for one request, from sending it to the end of the answer; waiting for the budget doesn't count. The
        environment variable JUPYTERHUB_REQUEST_TIMEOUT is its default. Range: 1 to 600.""",
    ).tag(config=True, low=1.0, high=600.0)

    constants = ("breaker_failures", "breaker_open_s")

    breaker_failures = 5
    """Failed requests in a row after which HubGuard only probes with a harmless GET until it is answered."""
    breaker_open_s = 15.0
    """Seconds between such probes at first, growing to ten times that."""
