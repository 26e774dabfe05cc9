"""RealNVP flows with a stack axis.

Networks and base distributions, then layers, then the stack of flows.
"""
