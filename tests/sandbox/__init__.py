"""The fake upstream is what the other tests stand on: it is tested first."""
