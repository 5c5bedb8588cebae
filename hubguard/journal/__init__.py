"""What HubGuard remembers: intents, outcomes, stance and lease, in a SQL database. Decides nothing, and asks no hub."""
