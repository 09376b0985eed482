"""Where events come from. A source knows the intake and nothing behind it."""
