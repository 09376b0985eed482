"""Real processes, real sockets, real disks: what a user runs is what is tested."""
