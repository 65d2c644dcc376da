"""A stand-in for the espeak-ng program where only its library is there: ``LIBRARY DATA -v VOICE -s RATE``.

Reads UTF-8 text from standard input and writes a WAV stream to standard output, as ``espeak-ng --stdin --stdout`` does.
It is run by its path, as a process of its own, and imports nothing but the standard library: espeak-ng is GPL-3, and
nothing else of the project may share a process with it. The calls are those of ``espeak-ng/speak_lib.h``.
"""

import ctypes
import os
import struct
import sys

SYNCHRONOUS, UTF8, RATE, END_PAUSE = 2, 1, 1, 0x1000


def main(library: str, data: str, voice: str, words_per_minute: int) -> int:
    espeak = ctypes.CDLL(library)
    # The library's own buffer for the path is short, so it is told a short one.
    os.chdir(data)
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, b".", 0)
    if rate <= 0 or espeak.espeak_SetVoiceByName(voice.encode()) != 0:
        return 1
    out = sys.stdout.buffer
    out.write(b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16))
    out.write(b"data\xff\xff\xff\xff")

    def on_sound(samples: int, count: int, _events: int) -> int:
        if samples and count:
            out.write(ctypes.string_at(samples, count * 2))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(on_sound)
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetParameter(RATE, words_per_minute, 0)
    text = sys.stdin.buffer.read() + b"\0"
    failed = espeak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, UTF8 | END_PAUSE, None, None)
    espeak.espeak_Synchronize()
    out.flush()
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[4], int(sys.argv[6])))
