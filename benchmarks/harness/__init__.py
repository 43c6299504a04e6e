"""What every benchmark needs: plans, processes, random streams, traces, charts, and
the interface of an optimiser."""
