"""Many runs over one folder: starting and continuing them, searching, and the report over all of them."""
