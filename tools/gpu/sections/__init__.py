"""One file a section: `run(day, findings)`."""
