"""What HubGuard remembers, in a SQL database. It asks no hub and knows no feature."""
