"""RealNVP on images: the multi-scale architecture of Dinh et al. 2017, over stacks.

Import from its modules.
"""
