from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """The staff pages: templates, static files and views, no tables."""

    name = "exhaust.console"
