"""The workers: one runs in each neighbour's environment and answers the driver's requests.

They import the standard library, torch, transformers and the library that they measure; nothing of the driver.
"""
