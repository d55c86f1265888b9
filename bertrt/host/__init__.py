"""The machine and the process: cores, peaks, paths, files, progress bars. Knows no model."""
