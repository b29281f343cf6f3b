"""What `align doctor` looks at: the machine, the packages, the GPUs, the Hub, and a step of the lab.

Needs no other package than Python's own, so that it can tell which are missing.
"""
