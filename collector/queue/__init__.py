"""The durable queue: `base` is its protocol, `sqlite` and `jetstream` are its two kinds, `backend` chooses one."""
