"""Past events as Parquet files, which exports and others read faster than rows. Off by default."""
