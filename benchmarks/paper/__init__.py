"""The tables and figures of Ma et al. 2019, measured again."""
