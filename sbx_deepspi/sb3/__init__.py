"""DeepSPI as SB3 knows it: algorithms, policies, callbacks, logs."""
