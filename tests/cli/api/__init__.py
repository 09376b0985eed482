"""`collector api …`."""
