"""Pages, API and metrics that concern every feature. Only the app imports it."""
