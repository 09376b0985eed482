"""The way out: wire format, token, delivery."""
