"""The commands of ``python -m rmu_exp``, a module each.

``add`` gives a command its arguments; what is heavy is imported when it is carried out.
"""
