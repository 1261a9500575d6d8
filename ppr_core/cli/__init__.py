"""The command line: `python -m ppr_core ...`, also installed as `ppr`."""
