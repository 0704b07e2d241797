"""Verification with all that token-by-token decoding would have done."""
