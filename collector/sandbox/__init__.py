"""A local server of the Productiv Developer API: to try the collector out, and the one fake upstream of its tests."""
