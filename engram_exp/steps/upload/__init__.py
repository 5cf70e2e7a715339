"""Upload: the output of a step crosses the link to the device.

Every upload is built as `Upload(placement)` with the device it leads to, says whether its sources should be pinned
(`pinned_source`), and is called with a tuple of host tensors; it returns the same on the device.
"""
