"""The page and API kit: pages, endpoints, login, OpenAPI, htmx, and the client of a running guard. It knows no feature."""
