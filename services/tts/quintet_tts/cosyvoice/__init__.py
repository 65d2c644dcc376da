"""CosyVoice v1 (300M, 300M-SFT, 300M-Instruct): inference alone, written anew, over the files of a release.

Text goes through ``frontend`` and ``tokenizer``, becomes speech tokens in ``lm``, mel frames in ``flow`` and sound in
``hift``; ``decoding`` batches the language model over sentences, ``streaming`` cuts a sentence into chunks.
"""
