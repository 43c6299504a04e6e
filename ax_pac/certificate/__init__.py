"""Certificates of a fitted model: three levels, their draws and bounds."""
