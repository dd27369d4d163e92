"""What ``posteriors.py`` is made of: methods, runs, results, metrics, tables and pictures."""
