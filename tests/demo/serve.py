# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref demo` in a process that notes whom it talks to.

python serve.py NOTES_FILE ARGUMENT ...
"""

import sys


def main(notes: str, *arguments: str):
    def note(*words):
        with open(notes, "a") as file:
            print(*words, file=file)

    def hook(event: str, details: tuple):
        if event == "socket.connect":
            note("connects to", details[1])
        if event == "socket.getaddrinfo":
            note("looks up", details[0])

    sys.addaudithook(hook)

    from oneref_hf import cli

    load_finder = cli.load_finder

    def load_with_note(*options):
        from huggingface_hub import constants

        note("Hub telemetry:", not constants.HF_HUB_DISABLE_TELEMETRY)
        return load_finder(*options)

    cli.load_finder = load_with_note
    sys.exit(cli.main(["demo", *arguments]))


if __name__ == "__main__":
    main(*sys.argv[1:])
