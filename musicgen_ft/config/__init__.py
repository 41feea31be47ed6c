"""What a user may choose, one frozen dataclass for each recipe; defaults stand here and nowhere else.

A YAML of ``configs/<recipe>/`` is one of these classes: flat, every key a field. Imports no torch, so that ``--help``
answers at once.
"""
