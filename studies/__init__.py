"""Trainings that back the pages of remedies: what is run, how, and each run as a line of JSON."""
