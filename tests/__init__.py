"""Tests mirror the package; names say what each proves."""
