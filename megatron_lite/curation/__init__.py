"""From raw web pages, papers and code to a corpus: read, filter, deduplicate, split, and account for everything."""
