"""What a run leaves behind: files, plots, one page."""
