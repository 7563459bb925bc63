"""The addresses for programs: requests, answers and their checks."""
