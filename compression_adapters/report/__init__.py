"""The output of a run: files, plots and one page."""
