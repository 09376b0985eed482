"""The whole agent on virtual time, from a seed."""
