"""Attacks on purified models: what wakes a backdoor that only sleeps."""
