"""What HubGuard remembers: intents, outcomes, stance and lease, in a SQL database. Decides nothing, and asks no hub."""

from hubguard.journal.store import Journal, open_journal

__all__ = ["Journal", "open_journal"]
