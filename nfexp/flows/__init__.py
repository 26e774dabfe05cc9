"""RealNVP flows with a stack axis: networks and base distributions, then layers, then the stack of flows."""
