"""Speed, measured beside limits of the same run."""
