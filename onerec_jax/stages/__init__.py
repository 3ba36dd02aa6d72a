"""The stages of a run; each reads and writes one folder of the workdir."""
