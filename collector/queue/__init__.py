"""The durable queue: `base` is its protocol, `sqlite` the implementation on one disk."""
