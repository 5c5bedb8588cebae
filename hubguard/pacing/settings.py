"""The settings of the budget."""

from __future__ import annotations

from traitlets import Float, Int

from hubguard.settings import Section


class HubGuardBudget(Section):
    """How fast HubGuard may talk to the hub, all its parts together."""

    rate = Float(
        40.0,
        help="""Maximum sustained requests per second to hub and proxy. A stop takes about three, each a few
        milliseconds of the hub's time. One fifth is reserved for verification and for people. Range: 0.1 to 1000.""",
    ).tag(config=True, low=0.1, high=1000.0)
    burst = Int(
        3,
        help="""Requests that may be sent at once after a quiet period. Keep it low, so that stops are spread and nobody
        waits behind many of them. HubGuard starts without a burst, so that repeated restarts don't flood the hub.
        Range: 1 to 1000.""",
    ).tag(config=True, low=1, high=1000)
    concurrency = Int(
        10,
        help="""Maximum number of stops in flight. A fifth of that, at least one, is added for looking and verifying.
        HubGuard halves it when the hub answers 429 or 5xx, not at all, or too slowly (three times its usual time plus
        half a second), and raises it by one while all is well. Range: 1 to 500.""",
    ).tag(config=True, low=1, high=500)
    request_timeout_s = Float(
        60.0,
        help="""Maximum seconds for one request, from sending it to the end of the answer; waiting for the budget
        doesn't count. Default: the environment variable JUPYTERHUB_REQUEST_TIMEOUT, if set. Range: 1 to 600.""",
    ).tag(config=True, low=1.0, high=600.0)

    constants = ("breaker_failures", "breaker_open_s")

    breaker_failures = 5
    """Failed requests in a row after which HubGuard only probes with a harmless GET until it is answered."""
    breaker_open_s = 15.0
    """Seconds between such probes at first, growing to ten times that."""
