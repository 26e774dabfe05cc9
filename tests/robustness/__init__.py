"""Campaigns against a real command: long ones are started by hand, a small one runs with the tests."""
