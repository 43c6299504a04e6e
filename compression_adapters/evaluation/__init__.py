"""One evaluation: samples, losses, estimates with standard errors, the problem."""
