"""Speed, measured beside limits of the same run: `python -m bench`, or `make bench`."""
