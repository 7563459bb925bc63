"""An export from its submission to its files: queue, attempts, retries, schedules."""
