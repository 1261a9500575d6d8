"""The one loop that steps an optimizer, its recorded step, and its checkpoints."""
