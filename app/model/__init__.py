"""SmolLM2 as arithmetic: layers, masks, loss, and the names and files that Hugging Face gives them.

In come a shape and tensors, or the name of a repository on the hub. Nothing here knows a store,
a data set or a run.
"""
