"""The lease, the mandate, attempts and their verification. Nothing outside changes except through here, and it knows
no feature."""
