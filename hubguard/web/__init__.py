"""The kit for pages and endpoints: login, OpenAPI, htmx, and the client of a running guard. It knows no feature."""
