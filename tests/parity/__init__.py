"""Parity: each method's step against formulas that are written out by hand.

The suite guards the agreement with the papers and with the released code, which was once found by
comparing single steps: every test runs the package's own method for a step or a few, and computes
the same step in plain torch from the formulas of the source that its docstring names, without a
call into the package. Weights, statistics, masks and perturbations must agree to 1e-8.

- All of it is float64 (`conftest.py`): at float32, 1e-8 could not tell a formula from another.
- A batch is the whole set, which is not augmented: its order then makes no difference, so that the
  formulas need no shuffle. What a method draws is read, or set, never drawn twice.
- The reference network (`plain.py`) is two convolutions with batch norm and a linear layer, as
  functions of a dictionary of tensors.

A departure from a source that the package declares ("Differs from ...") is in the formula, too.
"""
