"""Where settings come from, and what is said about wrong ones."""
