"""`python -m collector.config > config.example.toml` renews the example after a change of the model."""

import sys

from collector.config.example import example_toml

sys.stdout.write(example_toml())
