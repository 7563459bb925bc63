"""Makes sessions and users from stored events."""
