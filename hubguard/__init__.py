"""HubGuard keeps a JupyterHub healthy: it observes, decides, acts with care, and records."""

__version__ = "0.1.0"
