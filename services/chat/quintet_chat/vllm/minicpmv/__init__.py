"""What vLLM loads with a MiniCPM-V-2_6 instead of the code that came with it.

These modules are copied beside the model's files and imported by vLLM alone, so they import nothing of ours.
"""
