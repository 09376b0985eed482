"""With real programs of the system beside us; each test skips with a reason where its program is missing.

With COLLECTOR_SYSTEM_TESTS=required, as in CI, a missing program is a failure.
"""
