from django.apps import AppConfig


class ExhaustConfig(AppConfig):
    name = "exhaust"
