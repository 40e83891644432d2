"""The methods, one file each: its equation, its ``Settings`` and its ``Method``."""
