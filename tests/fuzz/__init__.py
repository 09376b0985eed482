"""Strangers' bytes: what parses them never crashes, never answers 500, and never makes up an event."""
