"""Connections to the database: pool, outages, the database's clock, binary arrays."""
