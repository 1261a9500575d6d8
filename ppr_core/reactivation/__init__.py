"""Attacks that reactivate the backdoor of a purified model, and their controls."""
