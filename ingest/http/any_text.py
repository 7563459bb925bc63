"""`<text:name>` in an address: any text, slashes and line breaks too.

Django's `<path:name>` ends at a line break, so no address would reach a person or a file whose
name has one.
"""

from django.urls.converters import StringConverter


class AnyText(StringConverter):
    regex = "(?s:.+)"
