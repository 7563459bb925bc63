"""The keys, applications and roles of callers, and the checks of them."""
