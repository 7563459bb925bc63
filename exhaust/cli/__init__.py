"""The `exhaust` command: sends events, requests datasets, downloads files and pulls the feed.

It speaks HTTP only and imports neither Django nor the rest of the project, so that it installs
without the server (`pyproject.toml` in this folder).
"""

__version__ = "0.1.0"  # of the service and of the command line: both builds read it here
