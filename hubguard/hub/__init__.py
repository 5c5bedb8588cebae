"""The hub: its REST API and its database, ports and clients. It decides nothing."""
