"""What a person sees: bars while a run goes on, a table at its end, plots, report.md."""
