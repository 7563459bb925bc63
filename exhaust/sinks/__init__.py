"""Ways to push to a receiver whose address somebody else named."""
