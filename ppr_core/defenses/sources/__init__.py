"""Trigger inversion: what BTI, PAM, MESA and Neural Cleanse unlearn."""
