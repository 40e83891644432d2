"""The stages of a run, one file each; :mod:`rmu_exp.pipeline` puts them in order."""
