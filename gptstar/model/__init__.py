"""The architecture: config -> blocks -> logits. Imports torch and nothing else of gptstar.

Tensor names may end in their shape, one letter a dimension:
B batch, T time (query positions), S source (key positions), C channels (d_model), H heads, K key/value heads,
D head size, F feed-forward width, V vocabulary.
"""
