"""Reads the hub once a minute for everyone and judges whether acting is safe. It changes nothing outside."""
