"""Certificates of a fitted model: the three levels, their draws and bounds."""
