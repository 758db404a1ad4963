"""What is compiled: the sweep and the reading-off of `gradlab.graded`, reflections, determinants.

Numba keeps compiled functions on disk, and looks at the file of a function, not at those of what it uses, to see
whether they have changed. So each file here has COMPILED_WITH, a digest of those that it uses; a change in one of them
changes this line, and `python tests/compiled_with.py` writes it anew (a test compares it).

Loops over whole registers are written out (`gradlab.registers`); matrices of the state are transposed where that lets
them run along rows.
"""
