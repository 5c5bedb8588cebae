"""What the hub looks like now, read once a minute for everyone, and whether acting is safe. It changes nothing outside."""
