"""The mathematics and the network: noise, processes, models, samplers, and decoding."""
