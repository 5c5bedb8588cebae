"""Pages, API and metrics that concern all features at once. Nothing imports it except `app`."""
