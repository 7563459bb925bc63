"""Consent, erasure, and the encryption of data about people."""
