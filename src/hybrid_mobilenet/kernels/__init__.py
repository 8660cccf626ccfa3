"""Fractional max pooling, forward and backward, once per kind of device.

Each module has the same two functions; `reference` is the one to read first.
"""
