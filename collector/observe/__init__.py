"""What the collector says of itself: metrics, logs, status."""
