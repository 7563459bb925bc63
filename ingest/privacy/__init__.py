"""Consent, erasure, and the encryption of what is stored about people."""
