"""Post-purification robustness: measure whether a purified model is really free of its backdoor."""
