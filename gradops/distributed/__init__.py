"""Steps of parameters that are spread over processes (DTensor: FSDP2, tensor parallelism).

Each process reads and updates its own shards. Between the two phases one gathering of a few numbers a parameter gives
every process the statistics of the full parameters, so that all decide alike; no process waits on its host.
"""
