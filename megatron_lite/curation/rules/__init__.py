"""Rules that judge documents, one file a source paper or kind; table.py has them all, with thresholds and papers."""
