"""A local server of the Productiv Developer API: for trying the collector out, and the one fake upstream of its tests."""
