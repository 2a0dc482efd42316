"""Rules that judge documents, one file a source paper or kind; table.py has them all, with thresholds and papers.

A heuristic rule asks C++ (csrc/text.cpp) for the counts it needs, in one pass of its own, and holds them against its
thresholds. Nothing is shared between rules: splitting a text into words is 2.5 of the 31 ns a byte that the rules of
Gopher, C4 and FineWeb take together, and so a rule that edits the text has nobody to tell.
"""
