"""What a run leaves behind: results, run directory, unfinished work, provenance."""
