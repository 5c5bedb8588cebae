"""The hub's REST API and its database: ports and clients. It decides nothing."""
