"""What the collector says of itself: metrics and logs."""
