"""Between what people have (files, numbers in their own units, texts) and arrays, the same in training and in serving.

NumPy, and other libraries where a kind of data needs them; never torch.
"""
