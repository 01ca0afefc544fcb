"""Data: layouts of known data sets, loading of any source into one schema, synthetic drawings."""
